"""What a checkpoint already is: the `quantization_config` of a config.json.

N rows (outputs) and K columns (inputs) of a weight, b bits, g columns a group. Names of methods, their keys and
defaults: transformers 5.24 quantizers/auto.py AUTO_QUANTIZATION_CONFIG_MAPPING, utils/quantization_config.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.planner.tables.dtypes import FLOATS, PACKED
from memplan.planner.tables.errors import UsageError, shorten, shown
from memplan.planner.tables.methods import METHODS

Config = Mapping[str, Any]
Part = tuple[str, tuple[int, ...], str, str]  # of a weight's constants: name, shape, dtype, why

BITSANDBYTES = "bitsandbytes"
MIXED = "bitsandbytes-mixed"
STORAGES = ("uint8", "bfloat16", "float16", "float32")


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
    weights = [g.get("weights") for g in groups.values() if isinstance(g, Mapping)] if _maps(groups) else []
    found = [_number("num_bits")(w) for w in weights if isinstance(w, Mapping)]
    return min((bits for bits in found if bits is not None), default=None)


def _maps(value: Any) -> bool:
    return isinstance(value, Mapping)


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which checkpoints are quantized: bits per weight, what is converted, and what no engine counts
    of it.
    """

    bits: Callable[[Config], int | None]
    source: str
    skips: str = "modules_to_not_convert"  # the key that lists modules left as they are
    experts: bool = True  # 3-D expert parameters are taken to be packed too, which is the least
    linears: bool = True
    floating: bool = False  # weights are float8, which computes without a whole copy in 16 bit
    constants: Callable[[Config, int, tuple[int, ...]], Iterator[Part]] | None = None
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
    """Of a packed weight: a 16-bit scale per group and output, its zero point in `bits` bits (int32 words)."""
    *experts, n, k = shape
    group = config.get("group_size", 128)
    groups = -(-k // group) if _positive(group) else 1  # -1: one group a row
    zeros = (*experts, groups, -(-n * bits // 32))
    yield "zero points", zeros, "int32", f"one per group of {group} weights, packed"
    yield "scales", (*experts, groups, n), "float16", f"one per group of {group} weights"


def _gptq(config: Config, bits: int, shape: tuple[int, ...]) -> Iterator[Part]:
    """As `_grouped`, and g_idx: the group of each input."""
    yield from _grouped(config, bits, shape)
    yield "group of each input", (*shape[:-2], shape[-1]), "int32", "g_idx"


_KERNELS = "how gptqmodel's kernels dequantize (a whole 16-bit weight each, kept for the backward by some)"
FORMATS: dict[str, Format] = {
    BITSANDBYTES: Format(
        lambda c: None, "transformers 5.24 quantizers/quantizer_bnb_4bit.py", "llm_int8_skip_modules", lacks=""
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
        lacks="what its fp8 kernels allocate in the forward",
    ),
    "gptq": Format(
        _number("bits"), "gptqmodel nn_modules/qlinear/__init__.py _register_gptq_buffers", constants=_gptq, lacks=_KERNELS
    ),
    "awq": Format(
        _number("bits", 4), "transformers 5.24 integrations/awq.py", constants=_grouped, lacks=_KERNELS
    ),
    "auto-round": Format(_number("bits", 4), "transformers 5.24 quantizers/quantizer_auto_round.py"),
    "mxfp4": Format(
        lambda c: 4,
        "transformers 5.24 integrations/mxfp4.py Mxfp4GptOssExperts",
        linears=False,
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
"""By quant_method. What a row has no `constants` for is counted at its bits alone: less than what it takes."""
NO_BITS = (BITSANDBYTES, MIXED)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How the weights of one checkpoint are stored."""

    name: str
    config: Config

    @property
    def format(self) -> Format:
        """The row of FORMATS."""
        return FORMATS[self.name]

    @property
    def bits(self) -> int:
        """Bits per weight. Raises UsageError where the config does not say it, or says what no weight has."""
        found = self.format.bits(self.config)
        if found not in PACKED:
            raise UsageError(
                f"quantization_config of method '{self.name}': {shown(found)} bits per weight are not understood "
                f"(expected {', '.join(map(str, PACKED))}); {INSTEAD}"
            )
        return found

    @property
    def dtype(self) -> str:
        """The dtype of a converted weight's row."""
        return "float8_e4m3fn" if self.format.floating else PACKED[self.bits]

    def converts(self, role: str, module: str) -> bool:
        """Whether a parameter of this role in this module is stored quantized."""
        kinds = ("linear", "conv1d") * self.format.linears + ("expert",) * self.format.experts
        return role in kinds and not any(skips(pattern, module) for pattern in self.skipped)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Modules that the config says are left as they are."""
        listed = self.config.get(self.format.skips)
        return tuple(name for name in listed if isinstance(name, str)) if isinstance(listed, list) else ()

    def constants(self, shape: tuple[int, ...]) -> Iterator[Part]:
        """The tensors beside a converted weight of this shape."""
        if self.format.constants is not None:
            yield from self.format.constants(self.config, self.bits, shape)


INSTEAD = "for the same model stored in 16 bit: --set checkpoint_quant=none"


def skips(pattern: str, module: str) -> bool:
    """Whether an entry of a list of modules names this one: from the start to a module's boundary, or as its
    end (transformers 5.24 quantizers/quantizers_utils.py should_convert_module; regular expressions in it are
    not run, and name nothing here).
    """
    return bool(pattern) and (
        module == pattern or module.startswith(pattern + ".") or module.endswith(pattern)
    )


def read(config: Config) -> Checkpoint | None:
    """What a config.json says of its checkpoint; None where it is stored as it is computed with. Raises
    UsageError for what is not understood.
    """
    found = next(
        (part["quantization_config"] for part in (config, config.get("text_config")) if _quantized(part)), None
    )
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise UsageError(f"quantization_config {shown(found)}: expected an object with a quant_method")
    method = found.get("quant_method")
    if found.get("load_in_4bit") is True or found.get("load_in_8bit") is True:
        method = BITSANDBYTES
    if method == "mxfp8":
        method = "fp8"
    if not isinstance(method, str) or method not in FORMATS or method == MIXED:
        raise UsageError(
            f"quantization_config: quant_method {shorten(shown(method))} is not understood (known: "
            f"{', '.join(name for name in FORMATS if name != MIXED)}); {INSTEAD}"
        )
    checkpoint = Checkpoint(method, found)
    if method == BITSANDBYTES and any(not _plain(name) for name in checkpoint.skipped):
        return Checkpoint(MIXED, found)
    return checkpoint


def _quantized(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("quantization_config") not in (None, {})


def _plain(name: str) -> bool:
    """Whether an entry means a kind of module, the same in every layer: no layer's number, no pattern."""
    return re.fullmatch(r"[A-Za-z_.]+\d*", name) is not None and re.search(r"\.\d", name) is None


def fields(config: Config, said: Mapping[str, Any]) -> dict[str, Any]:
    """Setup fields that the checkpoint decides; none where it is not quantized, or where `said` asks for the
    same model in 16 bit. Raises UsageError for what is not understood or contradicts what was said.
    """
    asked = said.get("checkpoint_quant")
    if asked == "none":
        return {}
    found = read(config)
    if found is None:
        if asked is not None:
            raise UsageError(
                f"checkpoint_quant '{shorten(str(asked))}': this model's config has no quantization_config"
            )
        return {}
    if found.name not in NO_BITS:
        found.bits  # noqa: B018  refused here, with the file in hand, rather than while rows are made
        return {"checkpoint_quant": found.name}
    return {"checkpoint_quant": found.name, **_bitsandbytes(found.config)}


def _bitsandbytes(config: Config) -> dict[str, Any]:
    """The Setup's own quantization fields, defaults as in BitsAndBytesConfig."""
    if config.get("load_in_8bit") is True:
        return {"quant_type": "int8"}
    return {
        "quant_type": _choice(config, "bnb_4bit_quant_type", "fp4", ("nf4", "fp4")),
        "double_quant": config.get("bnb_4bit_use_double_quant") is True,
        "compute_dtype": _choice(config, "bnb_4bit_compute_dtype", "float32", FLOATS),
        "quant_storage": _choice(config, "bnb_4bit_quant_storage", "uint8", STORAGES),
    }


def _choice(config: Config, key: str, default: str, legal: tuple[str, ...]) -> str:
    found = config.get(key)
    found = default if found is None else found
    if not isinstance(found, str) or found not in legal:
        raise UsageError(f"quantization_config: {key} {shorten(shown(found))}: expected {' or '.join(legal)}")
    return found


def contradictions(s: Any) -> list[tuple[bool, str]]:
    """Choices that a checkpoint's quantization excludes (transformers 5.24 trainer_utils.py
    validate_quantization_for_training, quantizers/auto.py merge_quantization_configs).
    """
    said, trains = f"this checkpoint is quantized ({s.checkpoint_quant})", METHODS[s.method].trains
    return [
        (
            s.checkpoint_quant != "none" and trains in ("all", "last_layers"),
            f"{said}: method '{s.method}' trains weights, which then have no gradient; use --method lora, or "
            f"{INSTEAD}",
        ),
        (
            s.checkpoint_quant not in ("none", *NO_BITS) and s.quant_type != "none",
            f"{said}: transformers does not quantize it again with bitsandbytes ({s.quant_type}); use --method "
            f"lora, or {INSTEAD}",
        ),
    ]


def lacks(setup: Any) -> str:
    """What is not counted of a run on this checkpoint, "" where all of it is."""
    if setup.checkpoint_quant == "none":
        return ""
    row = FORMATS[setup.checkpoint_quant]
    return row.lacks and f"a {setup.checkpoint_quant} checkpoint: {row.lacks}"


def said(setup: Any, config: Config) -> Iterator[str]:
    """What the output says of the checkpoint's own quantization."""
    if setup.checkpoint_quant != "none":
        how = f" {setup.quant_type}" * (setup.quant_type != "none")
        yield (
            f"the checkpoint is quantized ({setup.checkpoint_quant}{how}, its own quantization_config): its "
            "packed weights are read as they are"
        )
    elif _quantized(config):
        yield "checkpoint_quant none: the quantized checkpoint's model, stored in 16 bit"


def packed(spec_config: Config, setup: Any) -> Checkpoint | None:
    """The checkpoint whose weights stay packed in a format of their own; None where they are plain, or
    bitsandbytes'.
    """
    if setup.checkpoint_quant in ("none", *NO_BITS):
        return None
    found = read(spec_config)
    return found if found is not None else Checkpoint(setup.checkpoint_quant, {})
