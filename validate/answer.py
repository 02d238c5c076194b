"""The answer to a question: the verdict, the boundary at which it flips, and the derivation by hand beside the engine's own sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner import __version__
from planner.breakdown import Prediction
from planner.errors import UsageError
from planner.gpus import common_gpus
from planner.methods import METHODS
from planner.setup import Setup
from planner.spec import ModelSpec
from planner.units import gib
from planner.verdict import device_bytes, judge
from validate.ask import Question
from validate.claimsfile import Over, Part
from validate.lab import Lab, Missing
from validate.sweep import PartResult, check_part

SCHEMA = "memplan.ask/1"
LONGEST = 1_048_576


@dataclass(frozen=True)
class Line:
    """One step of the derivation: what, the arithmetic in words, and its bytes."""

    what: str
    zh: str
    arithmetic: str
    bytes: int


@dataclass(frozen=True)
class Answer:
    question: Question
    prediction: Prediction
    verdict: str  # fits | tight | no, for the card; empty without one
    device: int
    usable: int | None
    smallest_card: str | None
    boundaries: tuple[tuple[str, PartResult], ...]
    derivation: tuple[Line, ...]

    @property
    def by_hand(self) -> int:
        return sum(line.bytes for line in self.derivation)

    def to_document(self) -> dict[str, Any]:
        question = self.question
        return {
            "schema": SCHEMA,
            "memplan_version": __version__,
            "sentence": question.sentence,
            "lang": question.lang,
            "model": question.model,
            "gpu": question.gpu,
            "setup": self.prediction.setup.to_document(),
            "assumptions": [{"name": a.name, "value": a.value, "words": a.words or None} for a in question.assumptions],
            "verdict": self.verdict or None,
            "device_bytes": self.device,
            "usable_bytes": self.usable,
            "smallest_card": self.smallest_card,
            "boundaries": [
                {"what": what, "verdict": r.verdict, "condition": r.condition or None, "evidence": str(r.evidence)}
                for what, r in self.boundaries
            ],
            "derivation": [{"what": line.what, "arithmetic": line.arithmetic, "bytes": line.bytes} for line in self.derivation],
            "by_hand_bytes": self.by_hand,
            "peak": self.prediction.peak.to_document(),
            "accuracy": self.prediction.accuracy.to_document(),
        }


def answer(question: Question, lab: Lab | None = None) -> Answer:
    """The answer by the formula. Raises UsageError where the sentence asks for what contradicts itself or cannot be predicted."""
    lab = lab or Lab()
    fields = dict(question.fields)
    try:
        prediction = lab.predict(question.model, fields)
    except Missing as missing:
        raise UsageError(f"ask: {missing}") from None
    boundaries: list[tuple[str, PartResult]] = []
    verdict, usable, device = "", None, prediction.peak.device_bytes
    if question.gpu is not None:
        gpu = lab.gpu(question.gpu)
        verdict, usable, device = judge(prediction, gpu).verdict, gpu.usable_bytes, device_bytes(prediction, gpu)
        boundaries = _boundaries(question, prediction, lab)
    smallest = next((gpu.name for gpu in common_gpus() if judge(prediction, gpu).verdict == "fits"), None)
    derivation = tuple(by_hand(lab.spec(question.model), prediction))
    return Answer(question, prediction, verdict, device, usable, smallest, tuple(boundaries), derivation)


def _boundaries(question: Question, prediction: Prediction, lab: Lab) -> list[tuple[str, PartResult]]:
    """Where the verdict flips: by sequence, by batch, and with checkpointing on where it is off."""
    limit = lab.spec(question.model).max_positions or LONGEST
    asked = [("sequence_length", dict(question.fields), limit), ("micro_batch", dict(question.fields), 4096)]
    found = []
    if prediction.setup.checkpointing == "none" and METHODS[prediction.setup.method].trains != "nothing":
        asked.append(("sequence_length", {**question.fields, "checkpointing": "non_reentrant"}, limit))
    for name, fields, most in asked:
        part = Part(name, "fits", True, model=question.model, gpu=question.gpu or "", setup=fields, over=Over(f"setup.{name}", 1, most))
        label = name if fields.get("checkpointing") == question.fields.get("checkpointing") else f"{name}, checkpointing on"
        found.append((label, check_part(part, lab)))
    return found


_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


def by_hand(spec: ModelSpec, prediction: Prediction) -> list[Line]:
    """What an interview answer would write on a board, at the moment of the peak: weights, adapters, gradients alive then, states,
    checkpoints and logits by arithmetic; where nothing is checkpointed, what the engine's rows save a token."""
    setup, moment = prediction.setup, prediction.moment(prediction.peak.moment)
    lines = _weights(setup, spec, prediction)
    if METHODS[setup.method].trains == "nothing":
        return [*lines, _cache(spec, setup)]
    trained = prediction.trainable_parameters
    width = _WIDTH[setup.adapter_dtype if METHODS[setup.method].trains == "adapter" else setup.weight_dtype]
    if METHODS[setup.method].trains == "adapter":
        lines.append(Line("adapter weights", "适配器权重", f"{trained:,} x {width} B", trained * width))
    alive = moment.components["gradients"]
    lines.append(Line("gradients", "梯度", f"{trained:,} x {width} B{_alive(trained * width, alive)}", alive))
    states = moment.components["optimizer_states"]
    lines.append(
        Line(f"states of {setup.optimizer}", f"{setup.optimizer} 的状态", f"{trained:,} x {states / max(1, trained):.3g} B", states)
    )
    loss = [row for row in moment.rows if row.name.startswith(("logits: ", "loss: ")) and "weight" not in row.name]
    saved = moment.components["activations"]
    if setup.checkpointing != "none":
        saved -= sum(row.charged for row in loss if row.component == "activations")
    return [*lines, *_activations(spec, setup, saved, sum(row.charged for row in loss))]


def _cache(spec: ModelSpec, setup: Setup) -> Line:
    """Keys and values of every layer for every token."""
    kept = sum(2 * count * layer.attention.kv_heads * layer.attention.head_dim for count, layer in spec.layers)
    tokens, width = setup.micro_batch * setup.sequence_length, _WIDTH[setup.weight_dtype]
    text = f"{setup.micro_batch} x {setup.sequence_length:,} tokens x {kept:,} keys and values x {width} B"
    return Line("KV cache", "KV 缓存", text, tokens * kept * width)


def _weights(setup: Setup, spec: ModelSpec, prediction: Prediction) -> list[Line]:
    parameters, width = prediction.model.parameters, _WIDTH[setup.weight_dtype]
    if setup.quant_type not in ("nf4", "fp4"):
        return [Line("weights", "权重", f"{parameters:,} x {width} B", parameters * width)]
    linear = sum(count * one.in_features * one.out_features for count, layer in spec.layers for one in layer.linears())
    bits = 4 + (8 / setup.quant_block + 32 / (setup.quant_block * 256) if setup.double_quant else 32 / setup.quant_block)
    other = 4 if setup.kbit_prepare else width
    rest = parameters - linear
    return [
        Line("4-bit linear weights with constants", "4 位线性层权重（含常数）", f"{linear:,} x {bits:.3f} bits", round(linear * bits / 8)),
        Line("embeddings, head and norms", "词嵌入、输出头与归一化", f"{rest:,} x {other} B", rest * other),
    ]


def _activations(spec: ModelSpec, setup: Setup, saved: int, loss: int) -> list[Line]:
    batch, sequence, depth = setup.micro_batch, setup.sequence_length, spec.depth
    tokens = batch * sequence
    if setup.checkpointing == "none":
        text = f"{batch} x {sequence:,} tokens x {saved // tokens:,} B, as the engine's rows save them"
        return [Line("activations and logits", "激活与 logits", text, saved)]
    width = 4 if setup.kbit_prepare or setup.weight_dtype == "float32" else 2
    size = tokens * spec.hidden * depth * width
    text = f"{batch} x {sequence:,} x {spec.hidden:,} x {depth} layers x {width} B{_alive(size, saved)}"
    lines = [Line("checkpoints, one a layer", "每层一个检查点", text, min(size, saved))]
    if setup.loss == "full":
        size = tokens * spec.vocab * 14  # the output in 16 bits, three copies in fp32: upcast, log-softmax, gradient
        text = f"{batch} x {sequence:,} x {spec.vocab:,} x 14 B{_alive(size, loss)}"
        if 100 * loss >= size:
            lines.append(Line("logits and their gradients", "logits 及其梯度", text, min(size, loss)))
    return lines


def _alive(size: int, alive: int) -> str:
    """What the arithmetic gives is not all there at the peak: the share that is."""
    return "" if size <= alive else f", {alive / size:.0%} alive at the peak"


def summary_line(found: Answer) -> Mapping[str, str]:
    """The verdict in one sentence, in both languages."""
    model, method = found.question.model, found.prediction.setup.method
    need = gib(found.device)
    if found.usable is None:
        card_en = (
            f"; the smallest common card that holds it is {found.smallest_card}" if found.smallest_card else "; no common card holds it"
        )
        card_zh = f"；能放下的最小常见卡是 {found.smallest_card}" if found.smallest_card else "；没有常见的单卡能放下"
        return {"en": f"{method} on {model} needs {need}{card_en}", "zh": f"{model} 做 {method} 需要 {need}{card_zh}"}
    words = {"fits": ("Yes", "可以"), "tight": ("Barely", "勉强"), "no": ("No", "不行")}[found.verdict]
    have = f"{gib(found.usable)} ({found.question.gpu})"
    return {
        "en": f"{words[0]}: {method} on {model} needs {need} of {have}",
        "zh": f"{words[1]}：{model} 做 {method} 需要 {need}，卡上可用 {have}",
    }
