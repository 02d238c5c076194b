"""A question in a sentence, Chinese or English, read by a small fixed grammar: no model, no guessing without
saying so.

Every thing that was read is an Assumption with the words it came from; every thing that was not said has a
default and says `default`. A number that was not understood is an error, a word that was not used is told.
The words are tables in `vocabulary.py` and `questions/`.
"""

from __future__ import annotations

import re
from dataclasses import replace

from memplan.planner.tables.errors import UsageError, shorten
from memplan.validate.askcards import cards_of, consumer_cards, host_memory, how_many
from memplan.validate.askmodel import named_models, sized_models
from memplan.validate.questions.choices import expand, methods_of, numbers_of, switches_of
from memplan.validate.questions.claimed import WEIGHTS_ALONE, claims_of
from memplan.validate.questions.intents import FITS, intent_of, negated
from memplan.validate.questions.leftover import Leftover, leftover
from memplan.validate.questions.parts import split
from memplan.validate.questions.question import Question
from memplan.validate.questions.run_size import refuse_unused, run_size
from memplan.validate.questions.shown import shown_of
from memplan.validate.questions.spelling import spelling
from memplan.validate.reading import Assumption, B, E, Reading
from memplan.validate.vocabulary import UNANSWERED, WIDE

MOST_CHARACTERS = 500
MODEL_FREE = ("time", "cost", "why")
"""What is answered from published figures: no model needs to be named."""


def read(sentence: str, lang: str | None = None) -> Question:
    """The first question of a sentence. Raises UsageError as `read_all` does."""
    return read_all(sentence, lang)[0]


def read_all(sentence: str, lang: str | None = None) -> tuple[Question, ...]:
    """Every question of a sentence: one, or one for each of its parts or of the things named beside each
    other. Raises UsageError where no model is named, or where a number was not understood.
    """
    if not sentence.strip() or len(sentence) > MOST_CHARACTERS:
        raise UsageError(
            f'ask: expected a sentence of 1 to {MOST_CHARACTERS} characters, such as "65B QLoRA 48GB?"'
        )
    text = re.sub(r"\s+", " ", sentence.lower().translate(WIDE))
    chosen = lang or ("zh" if re.search(r"[\u4e00-\u9fff]", sentence) else "en")
    found: list[Question] = []
    for part in split(text):
        before = found[-1] if found else None
        found += _read_part(part, Question(sentence, chosen, "", {}, None, ()), before)
    return tuple(found)


def _read_part(text: str, empty: Question, before: Question | None) -> list[Question]:
    """The questions of one part; what it leaves out is as in the part before."""
    reading = Reading(text)
    spelling(reading)
    tokens, price = run_size(reading)
    models = named_models(reading)
    host = host_memory(reading)
    _unanswered(reading)
    shown_of(reading)
    denied = negated(reading)
    claimed = claims_of(reading, weights=re.search(WEIGHTS_ALONE, text) is not None)
    pairs = numbers_of(reading)
    intent = intent_of(reading)
    intent = "cost" if intent == "need" and price is not None else intent
    refuse_unused(intent, tokens, price)
    gpus = cards_of(reading)
    models += sized_models(reading)
    methods = methods_of(reading)
    pairs |= switches_of(reading)
    consumer = consumer_cards(reading) if not gpus else ()
    how_many(reading, gpus[0] if gpus else None)
    _all_read(reading)
    if claimed and intent == "saving":
        raise UsageError(
            f"ask: '{claimed[0].words}' beside a comparison is not understood: ask how much one saves "
            "against the other, or what one needs"
        )
    question = replace(
        empty,
        intent="claim" if claimed and intent in (FITS, "need", "file") else intent,
        negated=denied,
        claimed=claimed,
        gpus=consumer,
        tokens=tokens,
        price=price,
        left=_left(leftover(reading.text), host),
    )
    models = models or _default_model(question, before, reading)
    return expand(question, reading, models, gpus, methods, pairs, before)


def _left(found: Leftover, host: str) -> Leftover:
    return replace(found, words=(*found.words, host)) if host else found


def _default_model(question: Question, before: Question | None, reading: Reading) -> list[str]:
    if before is not None and before.model:
        return [before.model]
    if question.intent == "largest_model":
        return [""]
    if question.intent in (*MODEL_FREE, "saving"):
        reading.found.append(Assumption("model", "llama-7b"))
        return ["llama-7b"]
    raise UsageError(
        "ask: no model in the sentence: name one (memplan list models) or a size such as 65B or 650亿"
    )


def _unanswered(reading: Reading) -> None:
    for pattern, why in UNANSWERED:
        match = re.search(f"{B}(?:{pattern}){E}", reading.text)
        if match:
            raise UsageError(f"ask: '{match.group()}': {why}")


def _all_read(reading: Reading) -> None:
    """A number that nothing read may change the answer: refuse rather than ignore it."""
    left = re.search(r"[a-z_\-.]*\d[\w.%\-]*", reading.text, re.ASCII)
    if left:
        raise UsageError(
            f"ask: '{shorten(left.group().strip())}' was not understood: write sizes as 48GB, sequences as "
            "seq 2048, batches as batch 4, ranks as rank 16, GPUs as 8xA100"
        )
