"""What a text states of NF4's constants and of double quantization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from memplan.validate.claimsfile import Part
from memplan.validate.texts.amount_parts import (
    DTYPE_BYTES,
    SHORT,
    Said,
    Values,
    claiming,
    quantity,
    text_of_amount,
)


def _overhead(double: bool, model: str = "llama-7b") -> Part:
    """Bits of block constants per weight of the linear layers, as rows of a 4-bit model."""
    setup = {"method": "inference", "quant_type": "nf4", "double_quant": double}
    rows = {"quantity": "rows", "moment": "load", "component": "weights"}
    of = [
        {**rows, "row": "*quantization constants"},
        *([{**rows, "row": "*nested constants"}] if double else []),
    ]
    what = "block constants per weight of the linear layers of a 7B"
    zh = "7B 线性层每个权重的块常数"
    if double:
        what, zh = f"{what}, double quantization", f"{zh}，双重量化"
    return quantity(what, zh, model, setup, "bits/parameter", of=of, per=[{"quantity": "linear_parameters"}])


def constants(v: Values) -> Iterator[Said]:
    """What NF4's block constants add, in bits per weight of the linear layers, as predicted of a 7B."""
    said = v["bits"]
    yield (
        f"NF4's block constants add {text_of_amount(said)} per parameter",
        f"NF4 的常数每参数 {text_of_amount(said, 'zh')}",
        [claiming(_overhead(False), said)],
    )


def double_overhead(v: Values) -> Iterator[Said]:
    """What the constants take under double quantization, in bits per weight, as predicted of a 7B."""
    said = v["bits"]
    yield (
        f"double quantization brings the constants to {text_of_amount(said)} per parameter",
        f"双重量化使常数降至每参数 {text_of_amount(said, 'zh')}",
        [claiming(_overhead(True), said)],
    )


def double_saves_bits(v: Values) -> Iterator[Said]:
    """What double quantization saves, in bits per weight of the linear layers, as predicted of a 7B."""
    said, one = v["bits"], _overhead(False)
    less = [{**term, "setup": {"double_quant": True}, "times": -1} for term in _overhead(True).args["of"]]
    part = replace(
        one,
        what="bits saved per weight of the linear layers of a 7B",
        zh="7B 线性层每个权重节省的位数",
        args={**one.args, "of": [*one.args["of"], *less]},
    )
    yield (
        f"double quantization saves {text_of_amount(said)} per parameter",
        f"双重量化每参数节省 {text_of_amount(said, 'zh')}",
        [claiming(part, said)],
    )


def double_saves(v: Values) -> Iterator[Said]:
    """What double quantization saves of one or two models' NF4 weights, in GB, as predicted."""
    for model, size in ((v["a"], v["size"]), (v.get("b"), v.get("second"))):
        if model is None or size is None:
            continue
        single = {"method": "inference", "quant_type": "nf4", "double_quant": False}
        rows = {"quantity": "rows", "moment": "load", "component": "weights"}
        part = quantity(
            "NF4 weights without double quantization less those with it",
            "双重量化前后 NF4 权重之差",
            model,
            single,
            "GB",
            of=[rows, {**rows, "setup": {"double_quant": True}, "times": -1}],
        )
        yield (
            f"double quantization saves {text_of_amount(size)} on {model}",
            f"双重量化在 {model} 上节省 {text_of_amount(size, 'zh')}",
            [claiming(part, size)],
        )


def block_of_64(v: Values) -> Iterator[Said]:
    """A constant's bits over the weights of its block, held against NF4's predicted constants of a 7B."""
    bits, short = DTYPE_BYTES[v["dtype"]] * 8, SHORT[v["dtype"]]
    part = replace(_overhead(False), claimed=bits / v["block"], tolerance=0.001)
    yield (
        f"NF4 keeps one {short} constant per {v['block']} weights",
        f"NF4 每 {v['block']} 个权重存一个 {short} 常数",
        [part],
    )


def scales_in(v: Values) -> Iterator[Said]:
    """How many bits a block constant has under double quantization: read from the installed bitsandbytes."""
    said = v["bits"]
    fact = {"fact": "double_quantized_constant_bits"}
    part = Part(
        "bits of a block constant under double quantization",
        "library_fact",
        0,
        "双重量化后块常数的位数",
        args=fact,
    )
    yield (
        f"double quantization stores the constants in {text_of_amount(said)}",
        f"双重量化把常数存为 {text_of_amount(said, 'zh')}",
        [claiming(part, said)],
    )
