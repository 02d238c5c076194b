"""The answer to a question: the verdict, the boundary at which it flips, the other methods beside it, and the derivation by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from planner import __version__
from planner.breakdown import Prediction
from planner.errors import UsageError
from planner.gpus import common_gpus
from planner.methods import METHODS
from planner.units import gib
from planner.verdict import device_bytes, judge
from validate.ask import Question
from validate.byhand import Line, by_hand
from validate.chinese import in_language
from validate.claimsfile import Over, Part
from validate.lab import Lab, Missing
from validate.reading import Assumption
from validate.sweep import PartResult, check_part

SCHEMA = "memplan.ask/1"
LONGEST = 1_048_576
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)

METHODS_BESIDE: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("full, fp32 weights", {"method": "full", "weight_dtype": "float32"}),
    ("full, bf16 weights", {"method": "full", "weight_dtype": "bfloat16"}),
    ("full, bf16 weights, checkpointing", {"method": "full", "weight_dtype": "bfloat16", "checkpointing": "non_reentrant"}),
    ("lora", {"method": "lora", "checkpointing": "none"}),
    ("lora, checkpointing", {"method": "lora", "checkpointing": "non_reentrant"}),
    ("qlora, checkpointing", {"method": "qlora", "checkpointing": "non_reentrant"}),
)
"""Richest first: what is trained, then what is spared. Each says its checkpointing, which is what most verdicts hang on."""


@dataclass(frozen=True)
class Beside:
    """Another method for the same model, shape and card."""

    what: str
    device: int
    verdict: str


@dataclass(frozen=True)
class Answer:
    question: Question
    prediction: Prediction
    verdict: str  # fits | tight | no, for the card; empty without one
    device: int
    usable: int | None
    smallest_card: str | None
    boundaries: tuple[tuple[str, PartResult], ...]
    beside: tuple[Beside, ...]
    cards: tuple[Beside, ...]
    derivation: tuple[Line, ...]
    warnings: tuple[str, ...] = ()

    @property
    def by_hand(self) -> int:
        return sum(line.bytes for line in self.derivation if not line.of_which)

    def to_document(self) -> dict[str, Any]:
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
            "assumptions": [{"name": a.name, "value": a.value, "words": a.words or None} for a in question.assumptions],
            "verdict": self.verdict or None,
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
            "methods": [{"what": b.what, "device_bytes": b.device, "verdict": b.verdict or None} for b in self.beside],
            "cards": [{"gpus": int(b.what), "device_bytes": b.device, "verdict": b.verdict} for b in self.cards],
            "derivation": [
                {"what": line.what, "arithmetic": str(line.arithmetic), "bytes": line.bytes, "of_which": line.of_which}
                for line in self.derivation
            ],
            "by_hand_bytes": self.by_hand,
            "peak": self.prediction.peak.to_document(),
            "accuracy": self.prediction.accuracy.to_document(),
            "warnings": list(self.warnings),
        }


def answer(question: Question, lab: Lab | None = None) -> Answer:
    """The answer by the formula. Raises UsageError where the sentence asks for what contradicts itself or cannot be predicted."""
    lab = lab or Lab()
    question = _chosen(question, lab)
    cards = _cards(question, lab) if question.wanted == "cards" and question.gpu else ()
    if cards:
        enough = next((b for b in cards if b.verdict == "fits"), cards[-1])
        question = replace(
            question, fields={**question.fields, "gpus": int(enough.what), "parallel": _strategy(question, int(enough.what))}
        )
    fields = dict(question.fields)
    prediction = _predicted(question, fields, lab)
    boundaries: list[tuple[str, PartResult]] = []
    verdict, usable, device = "", None, prediction.peak.device_bytes
    warnings = list(prediction.warnings)
    if question.gpu is not None:
        gpu = lab.gpu(question.gpu)
        verdict, usable, device = judge(prediction, gpu).verdict, gpu.usable_bytes, device_bytes(prediction, gpu)
        boundaries = _boundaries(question, prediction, lab)
        if not gpu.verified:
            warnings.append(f"{gpu.name}: no run on this vendor's cards is recorded, and its kernels are not modelled: unverified")
    smallest = next((gpu.name for gpu in common_gpus() if judge(prediction, gpu).verdict == "fits"), None)
    derivation = tuple(by_hand(lab.spec(question.model), prediction)) if fields.get("parallel", "none") == "none" else ()
    told = (tuple(boundaries), _beside(question, lab), tuple(cards), derivation, tuple(warnings))
    return Answer(question, prediction, verdict, device, usable, smallest, *told)


def _predicted(question: Question, fields: Mapping[str, Any], lab: Lab) -> Prediction:
    try:
        return lab.predict(question.model, fields)
    except Missing as missing:
        raise UsageError(f"ask: {missing}") from None


def _need(question: Question, fields: Mapping[str, Any], lab: Lab) -> tuple[int, str] | None:
    """(bytes on the device, verdict) of another setup of the question; None where it has no prediction."""
    try:
        prediction = lab.predict(question.model, fields)
    except (Missing, UsageError):
        return None
    if question.gpu is None:
        return prediction.peak.device_bytes, ""
    gpu = lab.gpu(question.gpu)
    return device_bytes(prediction, gpu), judge(prediction, gpu).verdict


def _chosen(question: Question, lab: Lab) -> Question:
    """Where no method was named and a card was: the richest that fits (full, LoRA, QLoRA), said as such."""
    if not question.open_method or question.gpu is None or question.wanted:
        return question

    def fit(changes: Mapping[str, Any]) -> bool:
        found = _need(question, {**question.fields, **changes}, lab)
        return found is not None and found[1] == "fits"

    what, changes = next((row for row in METHODS_BESIDE if fit(row[1])), METHODS_BESIDE[-1])
    kept = tuple(a for a in question.assumptions if a.name != "method" or a.words)
    said = Assumption(
        "method", f"{what}: the first of full, LoRA and QLoRA that fits", "", f"{_method_zh(what)}：全参数、LoRA、QLoRA 中第一个放得下的"
    )
    return replace(question, fields={**question.fields, **changes}, assumptions=(*kept, said))


def _method_zh(what: str) -> str:
    return in_language("zh")(what)


def _beside(question: Question, lab: Lab) -> tuple[Beside, ...]:
    """The usual methods on the same model, shape and cards."""
    if METHODS[question.fields["method"]].trains == "nothing":
        return ()
    shape = ("micro_batch", "sequence_length", "gradient_accumulation", "recipe", "attention", "gpus", "parallel")
    kept = {name: question.fields[name] for name in shape if name in question.fields and question.fields[name] != "paper"}
    found = []
    for what, changes in METHODS_BESIDE:
        need = _need(question, {**kept, **changes}, lab)
        if need is not None:
            found.append(Beside(what, *need))
    return tuple(found)


def _strategy(question: Question, count: int) -> str:
    if count == 1:
        return "none"
    said = str(question.fields.get("parallel", "none"))
    return said if said != "none" else "fsdp"


def _cards(question: Question, lab: Lab) -> list[Beside]:
    """One card, then two, four, ...: what each holds, up to the first that fits."""
    found: list[Beside] = []
    for count in COUNTS:
        need = _need(question, {**question.fields, "gpus": count, "parallel": _strategy(question, count)}, lab)
        if need is not None:
            found.append(Beside(str(count), *need))
            if need[1] == "fits":
                break
    return found


def _boundaries(question: Question, prediction: Prediction, lab: Lab) -> list[tuple[str, PartResult]]:
    """Where the verdict flips: by sequence, by batch, and with checkpointing on where it is off."""
    limit = lab.spec(question.model).max_positions or LONGEST
    asked = [("sequence_length", dict(question.fields), limit), ("micro_batch", dict(question.fields), 4096)]
    found = []
    if prediction.setup.checkpointing == "none" and METHODS[prediction.setup.method].trains != "nothing":
        asked += [(name, {**question.fields, "checkpointing": "non_reentrant"}, most) for name, _, most in asked[:2]]
    for name, fields, most in asked:
        part = Part(name, "fits", True, model=question.model, gpu=question.gpu or "", setup=fields, over=Over(f"setup.{name}", 1, most))
        label = name if fields.get("checkpointing") == question.fields.get("checkpointing") else f"{name}, checkpointing on"
        found.append((label, check_part(part, lab)))
    return found


def summary_line(found: Answer) -> Mapping[str, str]:
    """The verdict in one sentence, in both languages."""
    method, setup = found.prediction.setup.method, found.prediction.setup
    model = found.question.model + (" (int8)" if setup.quant_type == "int8" else "")
    need = gib(found.device)
    each_en, each_zh = (
        (f" on each of {setup.gpus} cards ({setup.parallel})", f"（{setup.gpus} 张卡每张，{setup.parallel}）")
        if setup.gpus > 1
        else ("", "")
    )
    if found.usable is None:
        card_en = (
            f"; the smallest common card that holds it is {found.smallest_card}" if found.smallest_card else "; no common card holds it"
        )
        card_zh = f"；能放下的最小常见卡是 {found.smallest_card}" if found.smallest_card else "；没有常见的单卡能放下"
        return {"en": f"{method} on {model} needs {need}{each_en}{card_en}", "zh": f"{model} 做 {method} 需要 {need}{each_zh}{card_zh}"}
    largest = _largest(found)
    if largest is not None:
        return largest
    words = {"fits": ("Yes", "可以"), "tight": ("Barely", "勉强"), "no": ("No", "不行")}[found.verdict]
    have = f"{gib(found.usable)} ({found.question.gpu})"
    but = _but(found)
    if found.question.wanted == "cards":
        count = f"{setup.gpus}" if found.verdict != "no" else f"more than {setup.gpus}"
        zh_count = f"{setup.gpus} 张" if found.verdict != "no" else f"{setup.gpus} 张以上"
        return {
            "en": f"{count} x {found.question.gpu}: {method} on {model} needs {need} of {gib(found.usable)}{each_en}",
            "zh": f"{zh_count} {found.question.gpu}：{model} 做 {method} 每张需要 {need}，可用 {gib(found.usable)}{each_zh}",
        }
    return {
        "en": f"{words[0]}: {method} on {model} needs {need} of {have}{each_en}{but['en']}",
        "zh": f"{words[1]}：{model} 做 {method} 需要 {need}{each_zh}，卡上可用 {have}{but['zh']}",
    }


def _largest(found: Answer) -> Mapping[str, str] | None:
    """Where the largest sequence or batch is asked for: what it is, with checkpointing as said and on."""
    wanted = found.question.wanted
    if wanted not in ("sequence_length", "micro_batch"):
        return None
    name, zh = {"sequence_length": ("sequence", "序列"), "micro_batch": ("micro-batch", "批大小")}[wanted]
    told_en, told_zh = [], []
    for label, on_en, on_zh in ((wanted, "", ""), (f"{wanted}, checkpointing on", " with gradient checkpointing", "（开梯度检查点）")):
        result = dict(found.boundaries).get(label)
        if result is None:
            continue
        if result.verdict == "refuted":
            told_en.append(f"none fits{on_en}")
            told_zh.append(f"都放不下{on_zh}")
        elif result.boundaries:
            told_en.append(f"up to {result.boundaries[-1].low:,}{on_en}")
            told_zh.append(f"最大 {result.boundaries[-1].low:,}{on_zh}")
        else:
            told_en.append(f"as long as the model takes{on_en}" if wanted == "sequence_length" else f"beyond 4,096{on_en}")
            told_zh.append(f"模型支持的都可以{on_zh}" if wanted == "sequence_length" else f"超过 4,096{on_zh}")
    method, model, gpu = found.prediction.setup.method, found.question.model, found.question.gpu
    return {"en": f"{name} {', '.join(told_en)}: {method} on {model}, {gpu}", "zh": f"{model} 做 {method}，{gpu}：{zh}{'，'.join(told_zh)}"}


def _but(found: Answer) -> Mapping[str, str]:
    """Beside a no: the mildest change that fits."""
    if found.verdict != "no":
        return {"en": "", "zh": ""}
    method = found.prediction.setup.method
    kinds = [f"{method}, checkpointing", "lora, checkpointing", "qlora, checkpointing"] if method in ("lora", "full") else []
    if method == "full":
        kinds[0] = "full, bf16 weights, checkpointing"
    for kind in kinds:
        other = next((b for b in found.beside if b.what == kind and b.verdict == "fits"), None)
        if other is not None:
            return {"en": f"; {kind} needs {gib(other.device)}, which fits", "zh": f"；{_method_zh(kind)}需要 {gib(other.device)}，放得下"}
    return {"en": "", "zh": ""}
