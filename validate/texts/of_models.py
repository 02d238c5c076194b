"""What a text states of a model by itself: parameters, vocabulary, weights, and the bytes of training per parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from memplan.validate.claimsfile import Part
from memplan.validate.texts.amount_parts import (
    MIXED,
    PURE,
    SHORT,
    SPLIT,
    STATES,
    Case,
    Said,
    Values,
    claiming,
    quantity,
    text_of_amount,
)
from memplan.validate.texts.slots import Stated


def parameter_count(v: Values) -> Iterator[Said]:
    """How many parameters a model has."""
    part = quantity(
        "parameters of the checkpoint",
        "参数量",
        v["model"],
        {"method": "inference"},
        "parameters",
        quantity="parameters",
    )
    yield (
        f"{v['model']} has {text_of_amount(v['count'])} parameters",
        f"{v['model']} 有 {text_of_amount(v['count'], 'zh')} 参数",
        [claiming(part, v["count"])],
    )


def vocabulary(v: Values) -> Iterator[Said]:
    """How many entries a model's vocabulary has, to the last one."""
    part = quantity("entries of the vocabulary", "词表项数", v["model"], unit="", quantity="vocabulary")
    yield (
        f"the vocabulary of {v['model']} has {v['vocab']:,} entries",
        f"{v['model']} 的词表有 {v['vocab']:,} 项",
        [replace(part, claimed=v["vocab"])],
    )


def _weights_part(model: str, dtype: str) -> Part:
    setup: dict[str, Any] = {"method": "inference"}
    setup |= {"quant_type": dtype} if dtype in ("nf4", "int8") else {"weight_dtype": dtype}
    return quantity(
        "bytes of the weights",
        "权重字节数",
        model,
        setup,
        "GB",
        quantity="rows",
        moment="load",
        component="weights",
    )


def weights_said(model: str, dtype: str, size: Stated) -> Said:
    """The predicted weights of a model after the load, in GB, in one dtype or quantized to NF4 or int8."""
    short = SHORT.get(dtype, dtype)
    return (
        f"the {short} weights of {model} take {text_of_amount(size)}",
        f"{model} 的 {short} 权重为 {text_of_amount(size, 'zh')}",
        [claiming(_weights_part(model, dtype), size)],
    )


def weights(v: Values) -> Iterator[Said]:
    """The weights of one model, in GB, as `weights_said` states them."""
    yield weights_said(v["model"], v["dtype"], v["size"])


def weights_of_three(v: Values) -> Iterator[Said]:
    """The weights of two models, in GB, and those of a third between them where the text names one."""
    yield weights_said(v["a"], v["dtype"], v["sa"])
    yield weights_said(v["b"], v["dtype"], v["sb"])
    if "c" in v:
        low, high = sorted((v["sa"].amount.value, v["sb"].amount.value))
        between = Stated(replace(v["sa"].amount, value=(low, high), relation="between", about=False), 0.0)
        yield weights_said(v["c"], v["dtype"], between)


PER_PARAMETER: dict[str, Any] = {
    "model": "llama-7b",
    "unit": "B/parameter",
    "moment": "optimizer_step",
    "per": [{"quantity": "parameters", "component": "", "row": ""}],
}
_MIXED_CASE = ("mixed precision (fp32 weights, bf16 autocast)", "混合精度（fp32 权重 + bf16 autocast）")
_SPLIT_CASE = (
    "as DeepSpeed keeps them: bf16 weights and gradients, fp32 masters",
    "按 DeepSpeed：bf16 权重与梯度，fp32 主权重",
)
_PURE_CASE = ("pure bf16", "纯 bf16")
_COMPONENTS: dict[str, tuple[str, str, str, str]] = {
    "w": ("weights", "权重", "weights", ""),
    "g": ("gradients", "梯度", "gradients", "gradients *"),
    "m": ("master weights", "主权重", "optimizer_states", "fp32 partition (*)"),
    "o": ("the two moments", "两个动量", "optimizer_states", "*exp_avg*"),
}


def _cases(v: Values) -> list[tuple[Values, tuple[str, str]]]:
    """The settings under which bytes per parameter are counted: those that the text names, else each."""
    mixed: list[tuple[Values, Case]] = [(MIXED, _MIXED_CASE)]
    pure: list[tuple[Values, Case]] = [(PURE, _PURE_CASE)]
    return mixed if v.get("mixed") else pure if v.get("pure") else mixed + pure


def in_bytes(part: Part, value: float) -> Part:
    """The part with a number of bytes that a text claims of it, which may be off by 0.5 %."""
    return replace(part, claimed=value, tolerance=0.005)


def bytes_per_parameter(v: Values) -> Iterator[Said]:
    """Full fine-tuning's predicted weights, gradients and states, in bytes per parameter of a 7B."""
    parts = [
        in_bytes(
            quantity(
                "weights, gradients and optimizer states",
                "权重、梯度与优化器状态",
                setup=setup,
                of=STATES,
                case=case,
                **PER_PARAMETER,
            ),
            v["total"],
        )
        for setup, case in _cases(v)
    ]
    yield (
        f"full fine-tuning takes {v['total']:g} bytes per parameter",
        f"全参数微调每参数 {v['total']:g} 字节",
        parts,
    )


def bytes_per_component(v: Values) -> Iterator[Said]:
    """The sum of `bytes_per_parameter` in mixed precision, then each component as DeepSpeed keeps it."""
    yield from bytes_per_parameter({**v, "mixed": True})
    v = {"w": v.get("w", v.get("w2")), "g": v.get("w"), **v}
    for key in ("w", "g", "m", "o"):
        name, zh, component, row = _COMPONENTS[key]
        part = quantity(
            f"{name}, {_SPLIT_CASE[0]}",
            f"{zh}，{_SPLIT_CASE[1]}",
            setup=SPLIT,
            quantity="rows",
            component=component,
            **{**PER_PARAMETER, **({"row": row} if row else {})},
        )
        yield (
            f"{name} take {v[key]:g} bytes per parameter",
            f"{zh}每参数 {v[key]:g} 字节",
            [in_bytes(part, v[key])],
        )


_SAID_PARTS = (
    ("weights", "weights|权重"),
    ("gradients", "gradient|梯度"),
    ("optimizer_states", "moment|state|动量|状态"),
)


def component_bytes(v: Values) -> Iterator[Said]:
    """One predicted component of full fine-tuning of a 7B at the optimizer step, in bytes per parameter."""
    if re.search("master|主权重", v["part"]):
        part = quantity(
            f"master weights, {_SPLIT_CASE[0]}",
            f"主权重，{_SPLIT_CASE[1]}",
            setup=SPLIT,
            quantity="rows",
            component="optimizer_states",
            row="fp32 partition (*)",
            **PER_PARAMETER,
        )
        yield (
            f"master weights take {v['total']:g} bytes per parameter",
            f"主权重每参数 {v['total']:g} 字节",
            [in_bytes(part, v["total"])],
        )
        return
    component = next(name for name, words in _SAID_PARTS if re.search(words, v["part"]))
    zh = {"weights": "权重", "gradients": "梯度", "optimizer_states": "优化器状态"}[component]
    split = {"weights": "", "gradients": "gradients *", "optimizer_states": "*exp_avg*"}[component]
    cases = _cases(v) + ([(SPLIT, _SPLIT_CASE)] if not v.get("pure") else [])
    parts = [
        in_bytes(
            quantity(
                component.replace("_", " "),
                zh,
                setup=setup,
                quantity="rows",
                component=component,
                case=case,
                **{**PER_PARAMETER, **({"row": split} if setup is SPLIT and split else {})},
            ),
            v["total"],
        )
        for setup, case in cases
    ]
    english = component.replace("_", " ")
    yield (
        f"{english} of full fine-tuning take {v['total']:g} bytes per parameter",
        f"全参数微调的{zh}每参数 {v['total']:g} 字节",
        parts,
    )


def states_total(v: Values) -> Iterator[Said]:
    """A model's parameters x the text's bytes per parameter, in GB, without activations."""
    part = quantity(
        f"parameters at {v['per']:g} bytes each, activations apart",
        f"每参数 {v['per']:g} 字节，不含激活",
        v["model"],
        {"method": "inference"},
        "GB",
        of=[{"quantity": "parameters", "times": v["per"]}],
    )
    yield (
        f"{v['model']} at {v['per']:g} bytes per parameter takes {text_of_amount(v['size'])}",
        f"{v['model']} 按每参数 {v['per']:g} 字节计为 {text_of_amount(v['size'], 'zh')}",
        [claiming(part, v["size"])],
    )
