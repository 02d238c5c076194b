"""What a text states of LoRA: what it trains, its file, what rank costs, its time against QLoRA's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from memplan.validate.claimsfile import Part
from memplan.validate.questions.claimed import ABOUT
from memplan.validate.texts.amount_parts import (
    MIXED,
    SHORT,
    STATES,
    Said,
    Values,
    claiming,
    quantity,
    text_of_amount,
)
from memplan.validate.texts.of_models import PER_PARAMETER, in_bytes, weights_said
from memplan.validate.texts.slots import Stated

_NAMES = {
    ("all-linear",): ("all linear layers", "全部线性层"),
    ("q_proj", "v_proj"): ("q and v", "q、v"),
}


def lora_cases(v: Values) -> list[tuple[dict[str, Any], tuple[str, str]]]:
    """LoRA on the modules that the text names, else on all linear layers and on q and v alone."""
    base = {"method": "lora", **({"rank": v["rank"]} if "rank" in v else {})}
    if "targets" in v:
        return [({**base, "targets": list(v["targets"])}, ("", ""))]
    return [
        ({**base, "targets": list(targets)}, (f"on {_NAMES[targets][0]}", f"{_NAMES[targets][1]}"))
        for targets in (("all-linear",), ("q_proj", "v_proj"))
    ]


def _lora_name(v: Values) -> tuple[str, str]:
    on = _NAMES.get(v.get("targets", ()), ("+".join(v.get("targets", ())),) * 2)
    en = f"LoRA rank {v['rank']}{f' on {on[0]}' if on[0] else ''} of {v['model']}"
    return en, f"{v['model']} {on[1]}上秩 {v['rank']} 的 LoRA" if on[
        1
    ] else f"{v['model']} 上秩 {v['rank']} 的 LoRA"


def lora_count(v: Values) -> Iterator[Said]:
    """How many parameters LoRA trains, as predicted, in each of `lora_cases`."""
    en, zh = _lora_name(v)
    parts = [
        claiming(
            quantity(
                f"trained parameters, {_lora_name(v)[0]}",
                f"可训练参数，{_lora_name(v)[1]}",
                v["model"],
                setup,
                "parameters",
                quantity="trainable_parameters",
                case=case,
            ),
            v["count"],
        )
        for setup, case in lora_cases(v)
    ]
    yield (
        f"{en} trains {text_of_amount(v['count'])} parameters",
        f"{zh} 训练 {text_of_amount(v['count'], 'zh')} 参数",
        parts,
    )


def lora_share(v: Values) -> Iterator[Said]:
    """The parameters that LoRA trains as predicted, in % of the model's own, in the first of `lora_cases`."""
    en, zh = _lora_name(v)
    part = quantity(
        f"trained over base parameters, {_lora_name(v)[0]}",
        f"可训练参数与底座参数之比，{_lora_name(v)[1]}",
        v["model"],
        lora_cases(v)[0][0],
        "%",
        quantity="trainable_parameters",
        per=[{"quantity": "parameters"}],
    )
    yield (
        f"{en} trains {text_of_amount(v['share'])} of the parameters",
        f"{zh} 训练 {text_of_amount(v['share'], 'zh')} 的参数",
        [claiming(part, v["share"])],
    )


def lora_count_and_share(v: Values) -> Iterator[Said]:
    """The count of `lora_count`, then the share of `lora_share`."""
    yield from lora_count(v)
    yield from lora_share(v)


def _ranks(v: Values) -> Iterator[tuple[dict[str, Any], dict[str, Any], tuple[str, str]]]:
    """Setups of the two ranks, with and without checkpointing."""
    for checkpointing, case in (
        ("non_reentrant", ("with checkpointing", "开检查点")),
        ("none", ("without checkpointing", "不开检查点")),
    ):
        base = {"method": "lora", "checkpointing": checkpointing, "targets": ["all-linear"]}
        yield {**base, "rank": v["from"]}, {**base, "rank": v["to"]}, case


def rank_adds(v: Values) -> Iterator[Said]:
    """What the larger rank adds to the predicted peak, in GB, and to adapter, gradients and states alone."""
    parts = []
    for low, high, case in _ranks(v):
        part = quantity(
            "what the larger rank adds at the peak, all linear layers",
            "较大的秩在峰值处多占的显存，全部线性层",
            v["model"],
            high,
            "GB",
            of=[{"quantity": "peak"}, {"quantity": "peak", "setup": low, "times": -1}],
            case=case,
        )
        parts.append(claiming(part, v["size"]))
    low, high, _ = next(_ranks(v))
    part = quantity(
        "what the larger rank adds to adapter, gradients and states",
        "较大的秩使适配器、梯度与状态多占的显存",
        v["model"],
        high,
        "GB",
        moment="optimizer_step",
        of=[*STATES, *({**one, "setup": low, "times": -1} for one in STATES)],
        case=("adapter, gradients and states alone", "只算适配器、梯度与状态"),
    )
    parts.append(claiming(part, v["size"]))
    yield (
        f"LoRA of {v['model']}: rank {v['from']} to {v['to']} adds {text_of_amount(v['size'])}",
        f"{v['model']} 的 LoRA 秩从 {v['from']} 到 {v['to']} 多占 {text_of_amount(v['size'], 'zh')}",
        parts,
    )


def rank_times(v: Values) -> Iterator[Said]:
    """LoRA's predicted peak (allocated bytes) at one rank over that at another, on all linear layers."""
    model = v.get("model", "llama-7b")
    parts = []
    for low, high, case in _ranks(v):
        part = quantity(
            f"LoRA's peak at rank {v['to']} over rank {v['from']}, {model}",
            f"{model}：秩 {v['to']} 与秩 {v['from']} 的峰值之比",
            model,
            high,
            "x",
            quantity="peak",
            per=[{"quantity": "peak", "setup": low}],
            case=case,
        )
        parts.append(claiming(part, v["times"]))
    yield (
        f"LoRA at rank {v['to']} takes {text_of_amount(v['times'])} the memory of rank {v['from']}",
        f"LoRA 秩 {v['to']} 的显存为秩 {v['from']} 的 {text_of_amount(v['times'], 'zh')}",
        parts,
    )


def adapter_file(v: Values) -> Iterator[Said]:
    """An adapter's predicted file, in MB; a checkpoint as bf16 weights, in GB; the file over it, in %."""
    model = v["model"]
    if model == "of the checkpoint":
        model = _model_of_checkpoint(v["checkpoint"])
        if model is None:
            return
        v = {**v, "model": model}
    for dtype, size in ((v["dtype"], v["size"]), (v.get("other"), v.get("second"))):
        if dtype is None or size is None:
            continue
        parts = []
        for setup, case in lora_cases(v):
            part = quantity(
                f"file of the {SHORT[dtype]} adapter, rank {v['rank']}",
                f"秩 {v['rank']} 的 {SHORT[dtype]} 适配器文件",
                model,
                {**setup, "adapter_dtype": dtype},
                "MB",
                quantity="checkpoint",
                case=case,
            )
            parts.append(claiming(part, size, ABOUT if size.amount.relation == "=" else 0.0))
        yield (
            f"the {SHORT[dtype]} adapter of LoRA rank {v['rank']} on {model} is a file of {text_of_amount(size)}",
            f"{model} 上秩 {v['rank']} 的 LoRA 适配器（{SHORT[dtype]}）文件为 {text_of_amount(size, 'zh')}",
            parts,
        )
    if "checkpoint" in v:
        yield weights_said(model, "bfloat16", v["checkpoint"])
    if "share" in v:
        parts = []
        for setup, case in lora_cases(v):
            part = quantity(
                "the adapter's file over the checkpoint",
                "适配器文件与完整检查点之比",
                model,
                {**setup, "adapter_dtype": v["dtype"]},
                "%",
                quantity="checkpoint",
                per=[{"quantity": "parameters", "times": 2}],
                case=case,
            )
            parts.append(claiming(part, _at_most(v["share"])))
        yield (
            f"the adapter is {text_of_amount(_at_most(v['share']))} of the checkpoint",
            f"适配器为完整检查点的 {text_of_amount(_at_most(v['share']), 'zh')}",
            parts,
        )


def _at_most(said: Stated) -> Stated:
    """ "Less than 1 % of it" where the word for less stands before the whole."""
    return Stated(replace(said.amount, relation="<=", about=False), said.rounding)


def _model_of_checkpoint(size: Stated) -> str | None:
    """The model that a bf16 checkpoint of so many bytes is of: two bytes a parameter."""
    from memplan.planner.tables.errors import UsageError
    from memplan.validate.askmodel import sized_models
    from memplan.validate.claimsfile import UNITS
    from memplan.validate.reading import Reading

    if isinstance(size.amount.value, tuple):
        return None
    try:
        return sized_models(Reading(f"{size.amount.value * UNITS[size.amount.unit] / 2e9:.2g}b"))[0]
    except UsageError:
        return None


def qlora_faster(v: Values) -> Iterator[Said]:
    """LoRA's time over QLoRA's in runs that others published, as a ratio."""
    part = Part(
        "LoRA's time over QLoRA's in published runs",
        "published_times",
        0,
        "公开实测：LoRA 与 QLoRA 的用时之比",
        unit="x",
        args={"slow": "lora", "fast": "qlora"},
    )
    yield (
        f"QLoRA trains {text_of_amount(v['times'])} as fast as LoRA",
        f"QLoRA 训练速度为 LoRA 的 {text_of_amount(v['times'], 'zh')}",
        [claiming(part, v["times"], ABOUT)],
    )


def qlora_slower(v: Values) -> Iterator[Said]:
    """By how many % QLoRA took longer than LoRA in runs that others published."""
    part = Part(
        "how much longer QLoRA took than LoRA in published runs",
        "published_times",
        0,
        "公开实测：QLoRA 比 LoRA 多用的时间",
        unit="%",
    )
    yield (
        f"QLoRA takes {text_of_amount(v['share'])} more time than LoRA",
        f"QLoRA 比 LoRA 多用 {text_of_amount(v['share'], 'zh')} 时间",
        [claiming(part, v["share"], ABOUT)],
    )


def gradients_of_n(v: Values) -> Iterator[Said]:
    """An fp32 gradient and two fp32 moments of n parameters, in GB: arithmetic, 12 bytes each."""
    n = v["n"].amount.value
    if isinstance(n, tuple):
        return
    part = Part(
        "an fp32 gradient and AdamW's two fp32 moments of each",
        "arithmetic",
        0,
        "每个参数一份 fp32 梯度与两个 fp32 动量",
        unit="GB",
        args={"expression": f"{n:.0f} * (4 + 4 + 4)", "expression_unit": "B"},
    )
    yield (
        f"gradients and AdamW states of {n:,.0f} parameters take {text_of_amount(v['size'])}",
        f"{n:,.0f} 个参数的梯度与 AdamW 状态为 {text_of_amount(v['size'], 'zh')}",
        [claiming(part, v["size"])],
    )


def no_states_without_momentum(v: Values) -> Iterator[Said]:
    """Predicted states of AdamW, and of SGD without momentum (none), in bytes per parameter of a 7B."""
    rows = {"quantity": "rows", "component": "optimizer_states"}
    adam = quantity(
        "optimizer states of AdamW, mixed precision",
        "混合精度下 AdamW 的优化器状态",
        setup=MIXED,
        of=[rows],
        **PER_PARAMETER,
    )
    sgd = quantity(
        "optimizer states of SGD without momentum",
        "不带动量的 SGD 的优化器状态",
        setup={**MIXED, "optimizer": "sgd"},
        of=[rows],
        **PER_PARAMETER,
    )
    yield (
        f"SGD without momentum has none of AdamW's {v['bytes']:g} bytes of states per parameter",
        f"不带动量的 SGD 没有 AdamW 每参数 {v['bytes']:g} 字节的状态",
        [in_bytes(adam, v["bytes"]), in_bytes(sgd, 0)],
    )


def gradients_and_states(v: Values) -> Iterator[Said]:
    """LoRA's predicted gradients and states at the optimizer step, in GB, in each of `lora_cases`."""
    parts = []
    for setup, case in lora_cases(v):
        part = quantity(
            "gradients and optimizer states",
            "梯度与优化器状态",
            v["model"],
            setup,
            "GB",
            moment="optimizer_step",
            of=STATES[1:],
            case=case,
        )
        parts.append(claiming(part, v["size"]))
    yield (
        f"gradients and states of LoRA rank {v['rank']} on {v['model']} take {text_of_amount(v['size'])}",
        f"{v['model']} 上秩 {v['rank']} 的 LoRA 梯度与状态为 {text_of_amount(v['size'], 'zh')}",
        parts,
    )
