"""The answer to a question: the verdict, the boundary at which it flips, the other methods beside it, and the
derivation by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memplan.planner import __version__
from memplan.planner.answers.fit.decide import Remedy
from memplan.planner.answers.fit.gpus import choose_cards, to_share
from memplan.planner.answers.lengths import judged, with_lengths
from memplan.planner.answers.verdict import close_calls, device_bytes, judge, need_of, not_modelled
from memplan.planner.formula.sharding import strategies
from memplan.planner.inputs.batches import Loader
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.recipes import RECIPES
from memplan.validate.chinese import in_language
from memplan.validate.derivation import Line, by_hand
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.published_evidence import evidence
from memplan.validate.questions.question import Question
from memplan.validate.reading import Assumption
from memplan.validate.sweep import PartResult
from memplan.validate.turning_points import boundaries_of, remedy_of

SCHEMA = "memplan.ask/1"
COUNTS = tuple(2**n for n in range(11))  # to MOST_CARDS

METHODS_BESIDE: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("full, fp32 weights", {"method": "full", "weight_dtype": "float32"}),
    ("full, bf16 weights", {"method": "full", "weight_dtype": "bfloat16"}),
    (
        "full, bf16 weights, checkpointing",
        {"method": "full", "weight_dtype": "bfloat16", "checkpointing": "non_reentrant"},
    ),
    ("lora", {"method": "lora", "checkpointing": "none"}),
    ("lora, checkpointing", {"method": "lora", "checkpointing": "non_reentrant"}),
    ("qlora, checkpointing", {"method": "qlora", "checkpointing": "non_reentrant"}),
)
"""Richest first: what is trained, then what is spared. Each says its checkpointing, which is what most
verdicts hang on.
"""


AT_LEAST = "at least"
"""In place of a verdict where something is not counted; the document has null."""


def _known(verdict: str) -> str | None:
    """A verdict as the document has it."""
    return None if verdict in ("", AT_LEAST) else verdict


@dataclass(frozen=True)
class Beside:
    """Another method for the same model, shape and GPU."""

    what: str
    device: int
    verdict: str


@dataclass(frozen=True)
class Answer:
    """The answer to a question: a prediction with its verdict, limits and derivation. Sizes are in bytes."""

    question: Question
    prediction: Prediction
    verdict: (
        str  # fits | tight | no, for the GPU; empty without one; `at least` where something is not counted
    )
    device: int
    usable: int | None
    smallest_card: str | None
    boundaries: tuple[tuple[str, PartResult], ...]
    beside: tuple[Beside, ...]
    cards: tuple[Beside, ...]
    derivation: tuple[Line, ...]
    warnings: tuple[str, ...] = ()
    not_modelled: tuple[str, ...] = ()
    remedy: Remedy | None = None  # the fewest mild changes that make it fit, where no method beside it does
    survives: bool = True  # on the GPU, exactly as it is predicted

    @property
    def by_hand(self) -> int:
        """The sum of the derivation, bytes allocated at the peak."""
        return sum(line.bytes for line in self.derivation if not line.of_which)

    def to_document(self) -> dict[str, Any]:
        """The document of `memplan ask --json` (schema memplan.ask/1); sizes are in bytes."""
        question = self.question
        return {
            "schema": SCHEMA,
            "memplan_version": __version__,
            "sentence": question.sentence,
            "lang": question.lang,
            "wanted": question.wanted or None,
            "model": question.model,
            "gpu": question.gpu,
            "setup": self.prediction.setup.to_document(),
            "assumptions": [
                {"name": a.name, "value": a.value, "words": a.words or None} for a in question.assumptions
            ],
            "verdict": _known(self.verdict),
            "not_modelled": list(self.not_modelled),
            "device_bytes": self.device,
            "usable_bytes": self.usable,
            "smallest_card": self.smallest_card,
            "boundaries": [
                {
                    "what": what,
                    "verdict": r.verdict,
                    "condition": r.condition or None,
                    "evidence": str(r.evidence),
                    "flips": [boundary.to_document() for boundary in r.boundaries],
                }
                for what, r in self.boundaries
            ],
            "methods": [
                {"what": b.what, "device_bytes": b.device, "verdict": _known(b.verdict)} for b in self.beside
            ],
            "cards": [
                {"gpus": int(b.what), "device_bytes": b.device, "verdict": _known(b.verdict)}
                for b in self.cards
            ],
            "derivation": [
                {
                    "what": line.what,
                    "arithmetic": str(line.arithmetic),
                    "bytes": line.bytes,
                    "of_which": line.of_which,
                }
                for line in self.derivation
            ],
            "by_hand_bytes": self.by_hand,
            "peak": self.prediction.peak.to_document(),
            "accuracy": evidence(self.prediction).to_document(),
            "remedy": self.remedy
            and {"setup": dict(self.remedy.fields), "device_bytes": self.remedy.device_bytes},
            "warnings": list(self.warnings),
            **({"lengths": lengths} if (lengths := self.prediction.extra.get("lengths")) else {}),
        }


def answer(question: Question, context: EvaluationContext | None = None) -> Answer:
    """The answer by the formula. Raises UsageError where the sentence asks for what contradicts itself or
    cannot be predicted.
    """
    context = context or EvaluationContext()
    question = _chosen(question, context)
    cards = _cards(question, context) if question.wanted == "cards" and question.gpu else ()
    if cards:
        enough = next((b for b in cards if b.verdict == "fits"), cards[-1])
        question = replace(
            question,
            fields={
                **question.fields,
                "gpus": int(enough.what),
                "parallel": _strategy(question, int(enough.what)),
            },
        )
    fields = shared(question, question.fields, context)
    question = _told(question, fields)
    prediction = _predicted(question, fields, context)
    if question.loader is not None:
        prediction = _with_lengths(prediction, question.loader, context, question.model)
    boundaries: list[tuple[str, PartResult]] = []
    verdict, usable, device = "", None, prediction.peak.device_bytes
    missing, survives = prediction.not_modelled, True
    warnings = [*prediction.warnings, *strategies.warnings("formula", prediction.setup)]
    if question.gpu is not None:
        gpu = context.gpu(question.gpu)
        prediction = prediction.with_(gpus=(judge(prediction, gpu),))
        if question.loader is not None:
            prediction = judged(prediction, question.loader, context.spec(question.model))
        verdict, usable, device = (
            prediction.gpus[0].verdict or AT_LEAST,
            gpu.usable_bytes,
            device_bytes(prediction, gpu),
        )
        survives = need_of(prediction).survives(gpu)
        warnings += filter(None, [close_calls(prediction, [gpu])])
        missing = tuple(dict.fromkeys((*prediction.not_modelled, *not_modelled(prediction, gpu))))
        # where not all is counted, no length or batch is known to fit
        boundaries = [] if missing else boundaries_of(question, prediction, context)
    smallest = choose_cards(
        context.spec(question.model), prediction.setup, evidence(prediction).margin
    ).smallest
    derivation = (
        tuple(by_hand(context.spec(question.model), prediction))
        if fields.get("parallel", "none") == "none"
        else ()
    )
    beside = _beside(question, context)
    told = (tuple(boundaries), beside, tuple(cards), derivation, tuple(warnings), missing)
    fitting = any(other.verdict == "fits" for other in beside)
    changes = remedy_of(question, prediction, context) if verdict == "no" and not fitting else None
    return Answer(question, prediction, verdict, device, usable, smallest, *told, changes, survives)


def shared(question: Question, fields: Mapping[str, Any], context: EvaluationContext) -> dict[str, Any]:
    """The fields with what lets ranks share 4-bit weights, where the sentence does not say how they are
    stored.
    """
    parallel = str(fields.get("parallel", "none"))
    return {**fields, **to_share(context.setup(question.model, fields), parallel)}


def _told(question: Question, fields: Mapping[str, Any]) -> Question:
    if "quant_storage" not in fields:
        return question
    said = Assumption(
        "quant_storage",
        "bfloat16, so that the GPUs share 4-bit weights",
        "",
        "bfloat16，使各卡分摊 4 位权重",
    )
    return replace(question, fields=fields, assumptions=(*question.assumptions, said))


def _predicted(question: Question, fields: Mapping[str, Any], context: EvaluationContext) -> Prediction:
    try:
        return context.predict(question.model, on_gpu(question, fields))
    except Missing as missing:
        raise UsageError(f"ask: {missing}") from None


def on_gpu(question: Question, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields with the GPU asked about, which chooses kernels."""
    return fields if question.gpu is None else {**fields, "gpu": question.gpu}


def _with_lengths(
    prediction: Prediction, loader: Loader, context: EvaluationContext, model: str
) -> Prediction:
    """The prediction of a dataset's longest batch with what is to be said of the others."""

    def at(length: int) -> Prediction:
        fields = {**prediction.setup.values(), "sequence_length": length}
        return context.predict(model, fields, replayed=False)

    return with_lengths(prediction, loader, context.spec(model), at)


def _need(
    question: Question, fields: Mapping[str, Any], context: EvaluationContext
) -> tuple[int, str] | None:
    """(bytes on the device, verdict) of another setup of the question; None where it has no prediction."""
    try:
        prediction = context.predict(question.model, on_gpu(question, shared(question, fields, context)))
    except (Missing, UsageError):
        return None
    if question.gpu is None:
        return prediction.peak.device_bytes, ""
    gpu = context.gpu(question.gpu)
    return device_bytes(prediction, gpu), judge(prediction, gpu).verdict or AT_LEAST


def _chosen(question: Question, context: EvaluationContext) -> Question:
    """Where no method was named and a GPU was: the richest that fits (full, LoRA, QLoRA), said as such."""
    if not question.open_method or question.gpu is None or question.wanted:
        return question

    def fit(changes: Mapping[str, Any]) -> bool:
        found = _need(question, {**question.fields, **changes}, context)
        return found is not None and found[1] == "fits"

    what, changes = next((row for row in METHODS_BESIDE if fit(row[1])), METHODS_BESIDE[-1])
    kept = tuple(a for a in question.assumptions if a.name != "method" or a.words)
    in_chinese = in_language("zh")(what)
    chosen = f"{what}: the first of full, LoRA and QLoRA that fits"
    said = Assumption("method", chosen, "", f"{in_chinese}：全参数、LoRA、QLoRA 中第一个放得下的")
    return replace(question, fields={**question.fields, **changes}, assumptions=(*kept, said))


def _beside(question: Question, context: EvaluationContext) -> tuple[Beside, ...]:
    """The usual methods on the same model, shape and GPUs."""
    if METHODS[question.fields["method"]].trains == "nothing":
        return ()
    shape = (
        "micro_batch",
        "sequence_length",
        "gradient_accumulation",
        "recipe",
        "task",
        "attention",
        "gpus",
        "parallel",
    )
    kept = {
        name: question.fields[name]
        for name in shape
        if name in question.fields and not (name == "recipe" and RECIPES[question.fields[name]].only)
    }
    found = []
    for what, changes in METHODS_BESIDE:
        need = _need(question, {**kept, **changes}, context)
        if need is not None:
            found.append(Beside(what, *need))
    return tuple(found)


def _strategy(question: Question, count: int) -> str:
    if count == 1:
        return "none"
    said = str(question.fields.get("parallel", "none"))
    return said if said != "none" else "fsdp"


def _cards(question: Question, context: EvaluationContext) -> list[Beside]:
    """One GPU, then two, four, ... up to the first that fits, and between the last two the fewest that do, as
    `fit` looks for them: what each needs.
    """

    def ask(count: int) -> bool:
        fields = {**question.fields, "gpus": count, "parallel": _strategy(question, count)}
        need = _need(question, fields, context)
        if need is not None:
            found[count] = Beside(str(count), *need)
        return need is not None and need[1] == "fits"

    found: dict[int, Beside] = {}
    enough = next((count for count in COUNTS if ask(count)), None)
    few = 1 if enough is None else enough // 2 + 1
    while enough is not None and few < enough:
        middle = (few + enough) // 2
        few, enough = (few, middle) if ask(middle) else (middle + 1, enough)
    shown = [count for count in sorted(found) if count in COUNTS or count == enough]
    return [found[count] for count in shown if enough is None or count <= enough]
