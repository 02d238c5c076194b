"""A question in a sentence, Chinese or English, read by a small fixed grammar: no model, no guessing without
saying so.

Every thing that was read is an Assumption with the words it came from; every thing that was not said has a
default and says `default`. What looks like a quantity and was not understood is an error, not ignored. The
words are tables in `vocabulary.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.planner.tables.errors import UsageError, shorten
from memplan.validate.askcards import card, how_many, size_of_card
from memplan.validate.askmodel import model_of
from memplan.validate.reading import Assumption, B, E, Reading
from memplan.validate.vocabulary import METHODS_SAID, NUMBERS, SPELT, SWITCHES, UNANSWERED, WANTED, WIDE

MOST_CHARACTERS = 500


@dataclass(frozen=True)
class Question:
    """What was read: a model, Setup fields, perhaps a GPU, what is asked for, and the language to answer in.

    `wanted`: empty (does it fit, or what does it need), or the field whose largest value is asked for, or
    `cards`. `open_method`: no method was named, so the answer may choose one.
    """

    sentence: str
    lang: str
    model: str
    fields: Mapping[str, Any]
    gpu: str | None
    assumptions: tuple[Assumption, ...]
    wanted: str = ""
    open_method: bool = False


def read(sentence: str, lang: str | None = None) -> Question:
    """The question of a sentence. Raises UsageError where no model is named, or where a number was not
    understood.
    """
    if not sentence.strip() or len(sentence) > MOST_CHARACTERS:
        raise UsageError(
            f'ask: expected a sentence of 1 to {MOST_CHARACTERS} characters, such as "65B QLoRA 48GB?"'
        )
    reading = Reading(re.sub(r"\s+", " ", sentence.lower().translate(WIDE)))
    chosen = lang or ("zh" if re.search(r"[\u4e00-\u9fff]", sentence) else "en")
    _unanswered(reading)
    _spelling(reading)
    wanted = _wanted(reading)
    for pattern, name in NUMBERS[:-1]:  # before the GPUs: "batch 16 A100" is one GPU
        _number(reading, pattern, name)
    gpu = card(reading)
    model = model_of(reading)
    _modules(reading)
    for pattern, name, value in SWITCHES:
        if name not in reading.fields:
            _word(reading, pattern, name, value)
    _number(reading, *NUMBERS[-1])
    for pattern, value in METHODS_SAID:
        if "method" not in reading.fields:
            _word(reading, pattern, "method", value)
    if gpu is None:
        gpu = size_of_card(reading)
    how_many(reading, gpu)
    _all_read(reading)
    open_method = "method" not in reading.fields
    _agree(reading)
    return Question(sentence, chosen, model, reading.fields, gpu, tuple(reading.found), wanted, open_method)


def _unanswered(reading: Reading) -> None:
    for pattern, why in UNANSWERED:
        match = re.search(f"{B}(?:{pattern}){E}", reading.text)
        if match:
            raise UsageError(f"ask: '{match.group()}': {why}")


def _spelling(reading: Reading) -> None:
    """A known word with one letter wrong is interpreted as that word, and said so."""
    for match in list(re.finditer(r"(?<![a-z])[a-z]{4,}", reading.text)):
        word = match.group()
        meant = next((known for known in SPELT if word not in SPELT and _one_apart(word, known)), None)
        if meant:
            reading.text = re.sub(rf"(?<![a-z]){word}(?![a-z])", meant, reading.text)
            reading.found.append(Assumption("spelling", meant, word))


def _one_apart(word: str, known: str) -> bool:
    """Whether one letter more, less, other, or two neighbors swapped make `word` the known one; its first
    letter must be right.
    """
    if word[0] != known[0] or abs(len(word) - len(known)) > 1 or word == known:
        return False
    at = next(
        (n for n, (a, b) in enumerate(zip(word, known, strict=False)) if a != b), min(len(word), len(known))
    )
    tails = ((word[at + 1 :], known[at + 1 :]), (word[at + 1 :], known[at:]), (word[at:], known[at + 1 :]))
    swapped = word[at : at + 2][::-1] == known[at : at + 2] and word[at + 2 :] == known[at + 2 :]
    return swapped or any(a == b for a, b in tails)


def _wanted(reading: Reading) -> str:
    for pattern, name in WANTED:
        match = re.search(f"{B}(?:{pattern})", reading.text)
        if match and not (
            name != "cards" and re.match(r"\s*(?:of|=|:|为|是)?\s*\d", reading.text[match.end() :])
        ):
            if name != "cards":
                reading.take(match)
            return name
    return ""


def _word(reading: Reading, pattern: str, name: str, value: Any) -> None:
    match = re.search(f"{B}(?:{pattern}){E}", reading.text)
    if match:
        words = reading.take(match)
        if value is not None:
            reading.say(name, value, words)


def _number(reading: Reading, pattern: str, name: str) -> None:
    match = None if name in reading.fields else re.search(f"{B}(?:{pattern}){E}", reading.text)
    if match:
        kilo = 1024 if match.lastindex == 2 and match.group(2) else 1
        reading.say(name, int(match.group(1)) * kilo, reading.take(match))


def _modules(reading: Reading) -> None:
    """Target modules by their names: q_proj, v_proj."""
    found = re.findall(rf"{B}((?:q|k|v|o|gate|up|down|qkv|out)_proj){E}", reading.text)
    if found:
        match = re.search(rf"{B}[a-z]+_proj(?:[\s,、和与and+]*[a-z]+_proj)*", reading.text)
        assert match is not None
        reading.say("targets", tuple(dict.fromkeys(found)), reading.take(match))


def _all_read(reading: Reading) -> None:
    """A number that nothing read may change the answer: refuse rather than ignore it."""
    left = re.search(r"[a-z_\-.]*\d[\w.%\-]*", reading.text, re.ASCII)
    if left:
        raise UsageError(
            f"ask: '{shorten(left.group().strip())}' was not understood: write sizes as 48GB, sequences as "
            "seq 2048, "
            "batches as batch 4, ranks as rank 16, GPUs as 8xA100"
        )


def _agree(reading: Reading) -> None:
    """What one word means beside another: an 8-bit base is quantized, mixed precision is said of what trains
    in full.
    """
    fields = reading.fields
    if fields.get("quant_type") == "int8":
        if fields.get("method", "lora") not in ("lora", "qlora"):
            raise UsageError("ask: an 8-bit base is for LoRA: say LoRA, or 8-bit Adam for the optimizer")
        fields["method"] = "qlora"
    if "method" not in fields:
        fields["method"] = "lora"
        reading.found.append(Assumption("method", "lora"))
