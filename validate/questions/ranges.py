"""Answers over many: the largest model of the catalog that fits, and every GPU of a class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from memplan.planner.answers.verdict import device_bytes, judge
from memplan.planner.inputs.families.table import FAMILIES
from memplan.planner.inputs.models import from_catalog, index
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.units import gib
from memplan.validate.chinese import in_language
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.questions.question import Question, doing
from memplan.validate.questions.reply import Both, Reply, Row, both, predicted

_METHODS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (
        "full, bf16 weights, checkpointing",
        {"method": "full", "weight_dtype": "bfloat16", "checkpointing": "non_reentrant"},
    ),
    ("lora, checkpointing", {"method": "lora", "checkpointing": "non_reentrant"}),
    ("qlora, checkpointing", {"method": "qlora", "checkpointing": "non_reentrant"}),
)
_LEAST_BYTES = {"qlora": 0.5, "full": 4.0}
"""Bytes a linear weight takes at least with what trains it (4 bits; 16-bit weight and gradient). Other: 2."""
_SHAPE: Both = both("at batch {batch} x {length} tokens", "批大小 {batch}、序列 {length}")
_FITS: dict[str, Both] = {
    "fits": both("fits", "放得下"),
    "tight": both("tight", "勉强"),
    "no": both("does not fit", "放不下"),
}


def largest_model(question: Question, context: EvaluationContext) -> Reply:
    """The largest catalog model that fits by method, and the next that does not. Raises UsageError without a
    GPU.
    """
    if question.gpu is None:
        raise UsageError("ask: the largest model on which GPU? name it or its size, such as 24GB")
    asked = [(question.fields["method"], dict(question.fields))]
    if question.open_method:
        kept = {k: v for k, v in question.fields.items() if k != "method"}
        asked = [(what, {**changes, **kept}) for what, changes in _METHODS]
    rows, told_en, told_zh = [], [], []
    for what, fields in asked:
        one = replace(question, fields=fields)
        best, beyond = _search(one, context)
        chinese = in_language("zh")(what)
        if best is None:
            told_en.append(f"{what}: none")
            told_zh.append(f"{chinese}：没有")
        else:
            told_en.append(f"{what}: {best[0]} ({gib(best[1])})")
            told_zh.append(f"{chinese}：{best[0]}（{gib(best[1])}）")
            rows.append(
                Row(both(f"{what}: {best[0]}", f"{chinese}：{best[0]}"), gib(best[1]), _FITS["fits"], best[1])
            )
        if beyond is not None:
            rows.append(
                Row(
                    both(f"{what}, next: {beyond[0]}", f"{chinese}，下一个：{beyond[0]}"),
                    gib(beyond[1]),
                    _FITS["no"],
                    beyond[1],
                )
            )
    setup = context.setup("llama-7b", asked[0][1])
    shape = {"batch": setup.micro_batch, "length": f"{setup.sequence_length:,}"}
    line = both(
        f"Largest model of the catalog on {question.gpu} {_SHAPE['en'].format(**shape)}: {'; '.join(told_en)}",
        f"{question.gpu} 上目录中最大的模型（{_SHAPE['zh'].format(**shape)}）：{'；'.join(told_zh)}",
    )
    return Reply(question, line, rows=tuple(rows))


def _search(
    question: Question, context: EvaluationContext
) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
    """(the largest that fits, the smallest larger one that does not), each with its bytes on the device."""
    assert question.gpu is not None
    gpu = context.gpu(question.gpu)
    beyond: tuple[str, int] | None = None
    each = _LEAST_BYTES.get(
        "qlora" if "quant_type" in question.fields else str(question.fields["method"]), 2.0
    )
    for name in _candidates(gpu.usable_bytes, each, context):
        try:
            prediction = predicted(question, context, model=name)
        except (UsageError, Missing):
            continue
        found = (name, device_bytes(prediction, gpu))
        if judge(prediction, gpu).verdict == "fits":
            return found, beyond
        beyond = found
    return None, beyond


def _candidates(usable: int, each: float, context: EvaluationContext) -> Iterator[str]:
    """Models whose family the formula knows and whose bare weights are not too large, the largest first."""
    sizes = sorted(((int(row["parameters"]), name) for name, row in index().items()), reverse=True)
    for size, name in sizes:
        model = from_catalog(name) if size * each <= usable else None
        if model is None or model.config.get("model_type") not in FAMILIES:
            continue
        spec = context.spec(name)
        linear = sum(n * w.in_features * w.out_features for n, layer in spec.layers for w in layer.linears())
        if linear * each + (size - linear) * max(2.0, each) <= usable:
            yield name


def by_class(question: Question, context: EvaluationContext) -> Reply:
    """A verdict for each GPU of a class; where none was named, QLoRA, the method that needs least."""
    if question.open_method:
        question = replace(question, fields={**question.fields, "method": "qlora"})
    rows, words = [], []
    for name in question.gpus:
        gpu = context.gpu(name)
        prediction = predicted(replace(question, gpu=name), context)
        judged = judge(prediction, gpu)
        if judged.verdict is None:
            raise UsageError(f"ask: no verdict on {name}: {judged.why}")
        verdict = str(judged.verdict)
        need = device_bytes(prediction, gpu)
        words.append(verdict != "no")
        rows.append(Row(both(name, name), f"{gib(need)} / {gib(gpu.usable_bytes)}", _FITS[verdict], need))
    yes = [name for name, fits in zip(question.gpus, words, strict=True) if fits]
    held = words[0] if len(set(words)) == 1 else None
    if question.left.changes:
        held = None
    does = doing(question.fields)
    subject_en, subject_zh = f"{does['en']} on {question.model}", f"{question.model} 做 {does['zh']}"
    if not yes:
        line = both(
            f"Depends on the GPU meant: {subject_en} needs {rows[-1].value.split(' / ')[0]}, more than each of the {len(rows)} common consumer GPUs has",
            f"视所指的显卡：{subject_zh} 需要 {rows[-1].value.split(' / ')[0]}，{len(rows)} 种常见消费级显卡都不够",
        )
    else:
        line = both(
            f"{subject_en} fits {len(yes)} of {len(rows)} common consumer GPUs: {', '.join(yes)}",
            f"{subject_zh}：{len(rows)} 种常见消费级显卡中放得下的有 {'、'.join(yes)}",
        )
    return Reply(question, line, held if held is not False or not question.negated else True, tuple(rows))
