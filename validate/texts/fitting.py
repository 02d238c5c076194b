"""Sentences that say that a method fits a model on a GPU, or what it needs, read by the grammar of `memplan ask`:
their claims are the bank's `fits`, `fits-qlora`, `needs` and `weights`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.validate.ask import MOST_CHARACTERS, read_all
from memplan.validate.claimsfile import Claim, Part, Source
from memplan.validate.questions.claimed import ABOUT
from memplan.validate.questions.question import Question
from memplan.validate.texts.lexicon import CONDITIONS, TURNS
from memplan.validate.texts.match import text_of
from memplan.validate.texts.sentences import Sentence
from memplan.validate.texts.subject import method_of, methods_in
from memplan.validate.texts.templates import bank

_CONNECTING = re.compile(
    r"^[^:,]{1,12}:(?=.*(?:gpu|卡|显存|gb))|例如,|使得|让你?|成为可能|变为可能|成为现实|而(?=在)|(?<=上)也能|就能|能够|允许你?|支持|即可|甚至|的(?=方法|情况)|下(?=仅需|只需|需要)"
    r"|微调远超显存容量的模型|显著的内存节省:|\((?:如|例如)(?=用)|\)(?=[.。]?$)|如用|它|"
    r"\b(?:makes? it possible to|enables? (?:you |users |one )?(?:to)?|allows? (?:you |users |one )?(?:to)?|lets (?:you|us|people)|for example|for instance|even|already|possible)\b"
)
_REMARK = re.compile(r"\([^()]*\)")
_ASKED = re.compile(r"[?]|吗|多少|几张|how (?:much|many|long|big)|what|which|why|为什么|哪")
_SPENT = ("method", "gpus", "parallel")


def fitting(sentence: Sentence, name: str) -> list[Claim]:
    """The claims of a sentence about fitting or needing; empty where the grammar does not read all of it."""
    text = text_of(sentence)
    if TURNS.search(text) or _ASKED.search(text) or CONDITIONS.search(text) or len(text) > MOST_CHARACTERS:
        return []
    plain = _CONNECTING.sub(" ", text).strip(" .。!")
    above = method_of(sentence)
    named = {method for _, method in methods_in(plain)}
    if not named and above in METHODS:
        plain = f"{above} {plain}"
    try:
        questions = read_all(plain)
    except UsageError:
        return []
    claims = [claim for one in questions for claim in _claims(one, name, sentence.text)]
    return claims if len(claims) == len(questions) else []


def _claims(question: Question, name: str, quote: str) -> Iterator[Claim]:
    """One question as a claim; none where words are left over or something was taken for granted."""
    if question.left.changes or question.open_method or not question.model or question.gpus:
        return
    if METHODS[question.fields["method"]].trains == "nothing":
        return  # serving is no fine-tuning
    method = str(question.fields["method"])
    if question.intent == "fits" and question.gpu is not None:
        yield _fits(question, method, name, quote)
    elif question.intent == "claim" and len(question.claimed) == 1 and question.gpu is None:
        value = question.claimed[0]
        if value.against or value.of not in ("memory", "weights") or question.negated:
            return
        yield _needs(question, method, name, quote)


def _fits(question: Question, method: str, name: str, quote: str) -> Claim:
    base = bank()["fits-qlora" if method == "qlora" else "fits"]
    parts = tuple(_set(part, question, not question.negated) for part in base.parts)
    if "checkpointing" in question.fields:
        parts = (replace(parts[0], case=""),)
    said = {"gpus": question.fields.get("gpus", 1)}
    many = f"{said['gpus']} x " if said["gpus"] != 1 else ""
    verb, does = ("does not fit", "放不下") if question.negated else ("fits", "放得下")
    return Claim(
        name,
        f"{method} on {question.model} {verb} {many}{_named(question.gpu)}",
        (Source("text", quote),),
        parts,
        f"{method} 微调 {question.model}，{many}{_named(question.gpu)} {does}",
    )


def _named(gpu: str | None) -> str:
    """A GPU as people write it: a bare size in capitals."""
    return re.sub(r"^([\d.]+)gb$", r"\1GB", str(gpu))


def _set(part: Part, question: Question, claimed: bool) -> Part:
    """A part of the bank for the question's model, GPU and settings."""
    fields: dict[str, Any] = {k: v for k, v in question.fields.items() if k != "method"}
    setup = {**part.setup, "method": question.fields["method"], **fields}
    over = None if part.over is not None and part.over.key.removeprefix("setup.") in fields else part.over
    return replace(
        part, model=question.model, gpu=str(question.gpu or ""), setup=setup, over=over, claimed=claimed
    )


def _needs(question: Question, method: str, name: str, quote: str) -> Claim:
    value = question.claimed[0]
    base = bank()["weights" if value.of == "weights" else "needs"]
    parts = base.parts if METHODS[method].trains == "all" else base.parts[-2:]
    if value.of == "weights":
        parts = base.parts
    made = []
    for part in parts:
        one = _set(part, question, True)
        if value.of == "weights":
            one = replace(one, setup={**part.setup, **({"quant_type": "nf4"} if method == "qlora" else {})})
        wide = ABOUT if value.relation == "=" else 0.0
        made.append(
            replace(one, claimed=value.value, unit=value.unit, relation=value.relation, tolerance=wide)
        )
    amount = f"{value.value:g} {value.unit}"
    of_en, of_zh = (" of weights", "权重") if value.of == "weights" else ("", "显存")
    return Claim(
        name,
        f"{method} on {question.model} needs {value.relation if value.relation != '=' else 'about'} {amount}{of_en}",
        (Source("text", quote),),
        tuple(made),
        f"{method} 微调 {question.model} 需要 {amount} {of_zh}",
    )
