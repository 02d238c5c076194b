"""A sentence matched to the bank: which templates state it, with what numbers. Precision before recall: what
remains of the clauses that a wording touches must say nothing, and every number of the sentence must be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.profiler.localized_message import LocalizedMessage, said
from memplan.validate.questions.choices import numbers_of
from memplan.validate.questions.leftover import leftover
from memplan.validate.reading import TAKEN, B, E, Reading
from memplan.validate.texts.amounts import Amount, amount_of, dtype_of
from memplan.validate.texts.lexicon import (
    CONDITIONS,
    HARMLESS_EN,
    OTHER_SUBJECTS,
    TURNS,
    without_harmless,
)
from memplan.validate.texts.normal import clauses, normal
from memplan.validate.texts.sentences import Sentence
from memplan.validate.texts.subject import method_above, methods_in, take_model
from memplan.validate.texts.templates import Template, templates
from memplan.validate.vocabulary import SWITCHES

Span = tuple[int, int]
_NUMBER = re.compile(r"(?<![a-z0-9_.])\d[\d.,]*")
_SWITCH = re.compile("|".join(f"{B}(?:{pattern}){E}" for pattern, _, value in SWITCHES if value is not None))
_BOTH = re.compile(r"lora\s?(?:和|与|及|、|/|and|or|&)\s?(?:q-?|ada|do)?lora")


@dataclass(frozen=True)
class Match:
    """A template found in a sentence: its parameters, and the clauses and words that it accounts for."""

    template: Template
    amount: Amount | None
    words: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    touched: tuple[Span, ...] = ()


def text_of(sentence: Sentence) -> str:
    """A sentence as patterns read it; a cell stands behind its row's name."""
    return normal(f"{sentence.row}：{sentence.text}" if sentence.row else sentence.text)


def matches(sentence: Sentence) -> tuple[list[Match], LocalizedMessage | None]:
    """What a sentence states, or why nothing of it was read (None: no wording of the bank is in it)."""
    text = text_of(sentence)
    turned = TURNS.search(text)
    if turned:
        return [], said("a question, a denial or hearsay: {word}", word=turned.group())
    found = [match for template in templates() for match in _match(template, text, sentence)]
    found = _apart(found)
    if not found:
        return [], None
    unread = _unread(text, found)
    if unread:
        return [], said("not all of it was read: {word}", word=unread)
    return found, None


def _apart(found: list[Match]) -> list[Match]:
    """Matches of which no two account for the same words: the longer wording wins."""
    kept: list[Match] = []
    for match in sorted(found, key=lambda one: -sum(end - start for start, end in one.spans)):
        if not any(_overlap(match.spans, other.spans) for other in kept):
            kept.append(match)
    return sorted(kept, key=lambda one: one.spans[0])


def _overlap(one: tuple[Span, ...], other: tuple[Span, ...]) -> bool:
    return any(a < d and c < b for a, b in one for c, d in other)


def _match(template: Template, text: str, sentence: Sentence) -> Iterator[Match]:
    if template.context and not re.search(template.context, _around(text, sentence)):
        return
    reading = Reading(text)
    hits: list[re.Match[str]] = []
    for group in template.needs:
        found = _hits(group, reading)
        if found is None:
            return
        hits += found
    if not hits:
        return
    spans = tuple(hit.span() for hit in hits)
    touched = tuple(clause for clause in clauses(text) if _overlap((clause,), spans))
    inside = {method for hit in hits for _, method in methods_in(hit.group())}
    if not _subject_fits(template, reading.text, spans, touched, sentence, inside):
        return
    amount = next((one for one in map(amount_of, hits) if one is not None), None)
    words = {k: v for hit in hits for k, v in hit.groupdict().items() if v is not None}
    if "dtype" in words:
        words["dtype"] = dtype_of(words["dtype"])
    try:
        model, settings = _named(template, reading, touched, sentence)
    except UsageError:
        return
    if template.model in ("required", "before") and model is None:
        return
    if not template.free and _says_more(template, reading.text, touched):
        return
    yield Match(template, amount, words, model, settings, spans, touched)


def _hits(group: tuple[re.Pattern[str], ...], reading: Reading) -> list[re.Match[str]] | None:
    """The first wording of a group that is found, and every other that says the same number; their words are
    taken. None where there is none.
    """
    first = next((m for m in (pattern.search(reading.text) for pattern in group) if m), None)
    if first is None:
        return None
    if not first.group():
        return []
    reading.take(first)
    found = [first]
    for pattern in group:
        for match in list(pattern.finditer(reading.text)):
            if (
                match.group()
                and amount_of(match) == amount_of(first)
                and match.groupdict().keys() == first.groupdict().keys()
            ):
                reading.take(match)
                found.append(match)
    return found


def _around(text: str, sentence: Sentence) -> str:
    return normal(" ".join((text, sentence.before, *sentence.above)))


def _subject_fits(
    template: Template,
    text: str,
    spans: tuple[Span, ...],
    touched: tuple[Span, ...],
    sentence: Sentence,
    inside: set[str],
) -> bool:
    """Whether the method that the wording is said of is one of the template's."""
    if template.free:
        return True
    if any(_BOTH.search(text[start:end]) for start, end in touched):
        return False  # said of two methods at once
    named = methods_in(text)
    near = {method for place, method in named if any(start <= place < end for start, end in touched)}
    before = [method for place, method in named if place < spans[0][0]]
    if not named and OTHER_SUBJECTS.search(f"{normal(sentence.before)} {text}"):
        return False
    earlier = [method for _, method in methods_in(normal(sentence.before))]
    around = {*before[-1:], *earlier[-1:], *([] if before or earlier else [method_above(sentence)])}
    if "lora" in (*before[-1:], *earlier[-1:]) or near == {"lora"}:
        around |= {*before, *earlier, method_above(sentence)} & {"qlora"}  # QLoRA is told in terms of LoRA
    wanted = set(template.subject)
    if near and not near <= wanted:
        return (
            near == {"lora"} and "qlora" in around & wanted or near == {"lora", "qlora"} and "qlora" in wanted
        )
    return bool(near) or "" in wanted or bool((inside | around) & wanted)


def _named(
    template: Template, reading: Reading, touched: tuple[Span, ...], sentence: Sentence
) -> tuple[str | None, dict[str, Any]]:
    """The model and the settings that the touched clauses name, taken from the reading."""
    settings: dict[str, Any] = {}
    if template.settings:
        beside = Reading(_only(reading.text, touched))
        numbers_of(beside)
        if set(beside.fields) <= set(template.settings):
            settings = dict(beside.fields)
            reading.text = _merged(reading.text, beside.text, touched)
    if not template.model:
        return None, settings
    if template.model == "before":
        inside = Reading(reading.text)
        model = take_model(inside) or take_model(Reading(normal(sentence.before)))
        return model, settings
    if template.model == "touched":
        beside = Reading(_only(reading.text, touched))
        model = take_model(beside)
        reading.text = _merged(reading.text, beside.text, touched)
        return model, settings
    model = take_model(reading)
    return model, settings


def _only(text: str, spans: tuple[Span, ...]) -> str:
    """The text with everything outside the spans blanked."""
    return "".join(c if any(a <= i < b for a, b in spans) else TAKEN for i, c in enumerate(text))


def _merged(text: str, beside: str, spans: tuple[Span, ...]) -> str:
    return "".join(
        b if any(a <= i < e for a, e in spans) else c
        for i, (c, b) in enumerate(zip(text, beside, strict=True))
    )


def _says_more(template: Template, text: str, touched: tuple[Span, ...]) -> bool:
    """Whether the touched clauses say something that nothing has read, or another clause a condition."""
    for start, end in touched:
        rest = text[start:end]
        rest = _without_methods(rest)
        if template.also is not None:
            rest = template.also.sub(" ", rest)
        if re.search(r"\d", re.sub(r"[a-z]+\d+[a-z]*", "", rest)):
            return True
        left = [
            word
            for word in leftover(without_harmless(rest)).changes
            if word not in HARMLESS_EN and not (template.also and template.also.fullmatch(word))
        ]
        if left:
            return True
    return False


def _without_methods(text: str) -> str:
    from memplan.validate.texts.subject import PEFT
    from memplan.validate.vocabulary import METHODS_SAID

    for pattern, method in (*METHODS_SAID, (PEFT, "peft")):
        if method != "inference":
            text = re.sub(f"{B}(?:{pattern}){E}", " ", text)
    return text


def _unread(text: str, found: list[Match]) -> str:
    """The first number, setting or condition of a sentence that no match accounts for; empty where all are."""
    covered = tuple(span for match in found for span in (*match.spans, *match.touched))
    ignores = [word for match in found for word in match.template.ignores]
    rest = text
    for start, end in covered:
        rest = rest[:start] + TAKEN * (end - start) + rest[end:]
    for word in ignores:
        rest = re.sub(word, lambda m: TAKEN * len(m.group()), rest)
    if any(match.model for match in found):
        beside = Reading(rest)
        try:
            take_model(beside)
        except UsageError:
            return "another model"
        rest = beside.text
    hedged = any(match.template.hedged for match in found)
    patterns = (_NUMBER, _SWITCH) if hedged else (_NUMBER, _SWITCH, CONDITIONS)
    for pattern in patterns:
        left = pattern.search(rest)
        if left:
            return left.group()
    return ""
