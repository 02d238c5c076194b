"""FORMATS: how checkpoints are quantized, a row for each quant_method.

N rows (outputs) and K columns (inputs) of a weight. Bits, keys and their defaults: transformers 5.24
utils/quantization_config.py; each row names where its tensors were read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Config = Mapping[str, Any]
Part = tuple[str, tuple[int, ...], str, str]  # of a weight's constants: name, shape, dtype, why

BITSANDBYTES = "bitsandbytes"
MIXED = "bitsandbytes-mixed"


def _number(key: str, default: int | None = None) -> Callable[[Config], int | None]:
    def bits(config: Config) -> int | None:
        found = config.get(key, default)
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    return bits


def _named(key: str, default: str | None = None) -> Callable[[Config], int | None]:
    """Bits by the name of a dtype: int4, float8, Int8WeightOnlyConfig; the fewest where several are named."""

    def bits(config: Config) -> int | None:
        names = re.findall(r"(?:int|float|fp)(\d)", json.dumps(config.get(key, default)).lower())
        return min(map(int, names), default=None)

    return bits


def _in_groups(config: Config) -> int | None:
    """compressed-tensors: the fewest bits of any group's weights; the groups are the layers it names."""
    groups = config.get("config_groups")
    rows = groups.values() if isinstance(groups, Mapping) else ()
    weights = [row.get("weights") for row in rows if isinstance(row, Mapping)]
    found = [_number("num_bits")(w) for w in weights if isinstance(w, Mapping)]
    return min((bits for bits in found if bits is not None), default=None)


class Format(NamedTuple):
    """One way in which checkpoints are quantized: bits per weight, what is converted, and what no engine
    counts of it.
    """

    bits: Callable[[Config], int | None]
    source: str
    skips: str = "modules_to_not_convert"  # the key that lists modules left as they are
    experts: bool = True  # 3-D expert parameters are taken to be packed too, which is the least
    linears: bool = True
    floating: bool = False  # weights are float8, which computes without a whole copy in 16 bit
    constants: Callable[[Config, int, tuple[int, ...]], Iterator[Part]] | None = None
    capability: tuple[int, int] | None = None  # of the first GPUs whose kernels compute with it
    lacks: str = "scales, and what its kernels allocate"


def _fp8(config: Config, bits: int, shape: tuple[int, ...]) -> Iterator[Part]:
    """FP8Linear.weight_scale_inv: one fp32 per block of the weight, or one per weight where there are no
    blocks; a ue8m0 scale is a byte.
    """
    block = config.get("weight_block_size", (128, 128))
    dtype = "uint8" if config.get("scale_fmt") == "ue8m0" else "float32"
    *experts, n, k = shape
    blocks = (-(-n // block[0]), -(-k // block[1])) if _block(block) else (1, 1)
    yield "scales", (*experts, *blocks), dtype, "one scale per block of the weight (weight_scale_inv)"


def _block(block: Any) -> bool:
    return isinstance(block, list | tuple) and len(block) == 2 and all(_positive(size) for size in block)


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _grouped(config: Config, bits: int, shape: tuple[int, ...]) -> Iterator[Part]:
    """Of a packed weight: a 16-bit scale per group and output, its zero point in so many bits (int32)."""
    *experts, n, k = shape
    group = config.get("group_size", 128)
    groups = -(-k // group) if _positive(group) else 1  # -1: one group a row
    zeros = (*experts, groups, -(-n * bits // 32))
    yield "zero points", zeros, "int32", f"one per group of {group} weights, packed"
    yield "scales", (*experts, groups, n), "float16", f"one per group of {group} weights"


def _mxfp4(config: Config, bits: int, shape: tuple[int, ...]) -> Iterator[Part]:
    """One exponent, a byte, for 32 values (transformers 5.24 integrations/mxfp4.py: blocks of 16 bytes)."""
    *experts, n, k = shape
    yield "scales", (*experts, n, -(-k // 32)), "uint8", "one per 32 weights"


def _gptq(config: Config, bits: int, shape: tuple[int, ...]) -> Iterator[Part]:
    """As `_grouped`, and g_idx: the group of each input."""
    yield from _grouped(config, bits, shape)
    yield "group of each input", (*shape[:-2], shape[-1]), "int32", "g_idx"


_KERNELS = "how gptqmodel's kernels dequantize (a whole 16-bit weight each, kept for the backward by some)"
FORMATS: dict[str, Format] = {
    BITSANDBYTES: Format(
        lambda c: None,
        "transformers 5.24 quantizers/quantizer_bnb_4bit.py",
        "llm_int8_skip_modules",
        lacks="",
    ),
    MIXED: Format(
        lambda c: None,
        "transformers 5.24 quantizers/base.py get_modules_to_not_convert",
        "llm_int8_skip_modules",
        lacks="the layers that this checkpoint leaves in 16 bit (llm_int8_skip_modules)",
    ),
    "fp8": Format(
        lambda c: 8,
        "transformers 5.24 integrations/finegrained_fp8.py FP8Linear, FP8Experts",
        floating=True,
        constants=_fp8,
        capability=(8, 9),
        lacks="what its fp8 kernels allocate in the forward",
    ),
    "gptq": Format(
        _number("bits"),
        "gptqmodel nn_modules/qlinear/__init__.py _register_gptq_buffers",
        constants=_gptq,
        lacks=_KERNELS,
    ),
    "awq": Format(
        _number("bits", 4), "transformers 5.24 integrations/awq.py", constants=_grouped, lacks=_KERNELS
    ),
    "auto-round": Format(_number("bits", 4), "transformers 5.24 quantizers/quantizer_auto_round.py"),
    "mxfp4": Format(
        lambda c: 4,
        "transformers 5.24 integrations/mxfp4.py Mxfp4GptOssExperts",
        linears=False,
        constants=_mxfp4,
        capability=(7, 5),
        lacks="what its kernels allocate; a training run dequantizes it to 16 bit",
    ),
    "compressed-tensors": Format(
        _in_groups, "transformers 5.24 quantizers/quantizer_compressed_tensors.py", "ignore"
    ),
    "fbgemm_fp8": Format(lambda c: 8, "transformers 5.24 integrations/fbgemm_fp8.py", floating=True),
    "nvfp4": Format(lambda c: 4, "transformers 5.24 quantizers/quantizer_nvfp4.py"),
    "hqq": Format(_number("nbits", 4), "transformers 5.24 integrations/hqq.py", "skip_modules"),
    "quanto": Format(_named("weights", "int8"), "transformers 5.24 integrations/quanto.py"),
    "eetq": Format(lambda c: 8, "transformers 5.24 integrations/eetq.py"),
    "torchao": Format(_named("quant_type"), "transformers 5.24 integrations/torchao.py"),
}
"""By quant_method. What a row has no `constants` for is counted at its bits alone: a lower bound."""
NO_BITS = (BITSANDBYTES, MIXED)
