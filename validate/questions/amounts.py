"""Answers that are amounts: what one setup saves against another, parameters, a file, a KV cache."""

from __future__ import annotations

from dataclasses import replace

from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.units import gib
from memplan.validate.chinese import in_language
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.questions.question import Question
from memplan.validate.questions.reply import Both, Reply, Row, both, predicted, settings, subject

_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
_NOTHING = both("", "")


def saving(question: Question, context: EvaluationContext) -> Reply:
    """The difference of two setups in bytes and percent, where checkpointing is open both without and with."""
    other = question.against
    assert other is not None
    second = replace(question, model=other.model, fields=other.fields, gpu=other.gpu)
    names = _sides(question, second)
    rows, told_en, told_zh = [], [], []
    for what, changes in settings(question) if _same_open(question, second) else settings(question)[:1]:
        one, two = (predicted(side, context, **_only(changes, side)) for side in (question, second))
        first, last = one.peak.device_bytes, two.peak.device_bytes
        less = last - first
        share = abs(less) / max(1, last)
        word_en, word_zh = ("less", "少") if less >= 0 else ("more", "多")
        label = what if what["en"] != "as said" else both("", "")
        told_en.append(
            f"{label['en']} {gib(abs(less))} ({share:.1%}) {word_en}, {gib(first)} / {gib(last)}".strip()
        )
        told_zh.append(f"{label['zh']}{word_zh} {gib(abs(less))}（{share:.1%}，{gib(first)} / {gib(last)}）")
        rows += [
            Row(
                _named(names[0], label),
                gib(first),
                both(one.peak.moment, in_language("zh")(one.peak.moment)),
                first,
            ),
            Row(
                _named(names[1], label),
                gib(last),
                both(two.peak.moment, in_language("zh")(two.peak.moment)),
                last,
            ),
            *_by_component(one, two),
        ]
    told_en, told_zh = (
        told_en[-2:],
        told_zh[-2:],
    )  # the usual precision in the sentence, all of it in the rows
    line = both(
        f"{names[0]['en']} against {names[1]['en']} ({_common(question, second)}): {'; '.join(told_en)}",
        f"{_common(question, second)}：{names[0]['zh']}比{names[1]['zh']}，{'；'.join(told_zh)}",
    )
    return Reply(question, line, rows=tuple(rows))


_WORDS: dict[tuple[str, object], Both] = {
    ("checkpointing", "non_reentrant"): both("with checkpointing", "开检查点"),
    ("checkpointing", "none"): both("without checkpointing", "不开检查点"),
    ("double_quant", True): both("double quantization", "双重量化"),
    ("double_quant", False): both("no double quantization", "不做双重量化"),
}


def _plain(name: str, value: object) -> Both:
    if name in ("method", "model"):
        return both(str(value), str(value))
    return both(f"{name.replace('_', ' ')} {value}", f"{in_language('zh')(name)} {value}")


def _same_open(one: Question, other: Question) -> bool:
    """Whether both sides leave checkpointing, and precision where one trains in full, open."""
    return "checkpointing" not in one.fields and "checkpointing" not in other.fields


def _only(changes: dict[str, object], side: Question) -> dict[str, object]:
    """The changes that concern a side: a precision of full fine-tuning's weights does not concern an adapter."""
    return {k: v for k, v in changes.items() if k != "weight_dtype" or side.fields["method"] == "full"}


def _sides(one: Question, other: Question) -> tuple[Both, Both]:
    """What each side is called: what differs between them."""
    keys = [k for k in {**one.fields, **other.fields} if one.fields.get(k) != other.fields.get(k)]

    def name(side: Question) -> Both:
        parts = [(k, side.fields[k]) for k in keys if k in side.fields]
        if side.model != (other if side is one else one).model:
            parts.insert(0, ("model", side.model))
        said = [_WORDS.get((k, v), _plain(k, v)) for k, v in parts]
        return both(", ".join(one["en"] for one in said), "，".join(one["zh"] for one in said))

    return name(one), name(other)


def _common(one: Question, other: Question) -> str:
    """What both sides share: the model, and the method."""
    shared = [one.model] if one.model == other.model else []
    method = one.fields["method"]
    return ", ".join([*shared, *([method] if method == other.fields["method"] else [])])


def _named(name: Both, label: Both) -> Both:
    if not label["en"]:
        return name
    return both(f"{name['en']}, {label['en']}", f"{name['zh']}，{label['zh']}")


def _by_component(one: Prediction, two: Prediction) -> list[Row]:
    """Where the difference lies, at each one's own peak."""
    rows = []
    for component in COMPONENTS:
        first, last = (p.moment(p.peak.moment).components[component] for p in (one, two))
        if first != last:
            sign = "-" if first < last else "+"
            what = both(
                f"  {component.replace('_', ' ')}", f"  {in_language('zh')(component.replace('_', ' '))}"
            )
            rows.append(Row(what, f"{sign}{gib(abs(first - last))}", _NOTHING, first - last))
    return rows


def parameters(question: Question, context: EvaluationContext) -> Reply:
    """How many parameters train, of how many."""
    prediction = predicted(question, context)
    trained, total = prediction.trainable_parameters, prediction.total_parameters
    targets = ", ".join(prediction.setup.targets)
    said = subject(question)
    if question.open_method:
        count = prediction.model.parameters
        return Reply(
            question,
            both(f"{question.model} has {count:,} parameters", f"{question.model} 有 {count:,} 个参数"),
        )
    share = trained / max(1, total)
    adapter = METHODS[prediction.setup.method].trains == "adapter"
    more_en, more_zh = (
        (
            f"; rank {prediction.setup.rank}, targets {targets}",
            f"；秩 {prediction.setup.rank}，目标层 {targets}",
        )
        if adapter
        else ("", "")
    )
    return Reply(
        question,
        both(
            f"{said['en']} trains {trained:,} of {total:,} parameters ({share:.4%}){more_en}",
            f"{said['zh']}：训练 {trained:,} 个参数，共 {total:,} 个（{share:.4%}）{more_zh}",
        ),
    )


def file_size(question: Question, context: EvaluationContext) -> Reply:
    """The size of what training saves for later use: the adapter's file, or the whole model's."""
    prediction = predicted(question, context)
    setup = prediction.setup
    if METHODS[setup.method].trains == "nothing":
        raise UsageError(
            "ask: inference saves no file: ask for the file of full fine-tuning or of an adapter"
        )
    size = prediction.checkpoint_bytes
    if question.open_method:
        question = replace(question, fields={**question.fields, "method": "full"})
        size = prediction.model.parameters * _WIDTH[setup.weight_dtype]
        en, zh = f"the weights of {question.model} as a file", f"{question.model} 的权重文件"
        return Reply(
            question,
            both(
                f"{en}: {size / 1e6:,.1f} MB ({gib(size)}) in {setup.weight_dtype}",
                f"{zh}：{size / 1e6:,.1f} MB（{gib(size)}），{setup.weight_dtype}",
            ),
        )
    adapter = METHODS[setup.method].trains == "adapter"
    targets = ", ".join(setup.targets)
    more_en = f"; rank {setup.rank} on {targets}, {setup.adapter_dtype}" if adapter else ""
    more_zh = f"；秩 {setup.rank}，目标层 {targets}，{setup.adapter_dtype}" if adapter else ""
    said = subject(question)
    return Reply(
        question,
        both(
            f"{said['en']} saves a file of {size / 1e6:,.1f} MB ({gib(size)}){more_en}",
            f"{said['zh']}：保存的文件 {size / 1e6:,.1f} MB（{gib(size)}）{more_zh}",
        ),
        rows=(Row(both("saved for later use", "保存的文件"), gib(size), _NOTHING, size),),
    )


def kv_cache(question: Question, context: EvaluationContext) -> Reply:
    """Keys and values of every layer: L x 2 x K x D elements a token, times batch and length."""
    spec = context.spec(question.model)
    if any(layer.attention.window or layer.attention.value_dim for _, layer in spec.layers):
        raise UsageError(
            f"ask: {question.model} does not keep whole keys and values (sliding window or latent attention): "
            "its cache is not computed"
        )
    a_token = sum(
        count * 2 * layer.attention.kv_heads * layer.attention.head_dim for count, layer in spec.layers
    )
    setup = context.setup(question.model, {**question.fields, "method": "inference"})
    width = _WIDTH[setup.weight_dtype]
    size = a_token * width * setup.sequence_length * setup.micro_batch
    shape = f"{setup.micro_batch} x {setup.sequence_length:,}"
    return Reply(
        question,
        both(
            f"The KV cache of {question.model} takes {gib(size)} for {shape} tokens in {setup.weight_dtype}: "
            f"{a_token * width:,} B a token",
            f"{question.model} 的 KV 缓存：{shape} 个 token、{setup.weight_dtype} 时 {gib(size)}，每个 token {a_token * width:,} 字节",
        ),
        rows=(Row(both("KV cache", "KV 缓存"), gib(size), _NOTHING, size),),
    )
