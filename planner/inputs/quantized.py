"""What a checkpoint already is: the `quantization_config` of a config.json.

Methods, their keys and defaults: transformers 5.24 quantizers/auto.py AUTO_QUANTIZATION_CONFIG_MAPPING,
utils/quantization_config.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from memplan.planner.inputs.checkpoint_formats import (
    BITSANDBYTES,
    FORMATS,
    MIXED,
    NO_BITS,
    Config,
    Format,
    Part,
)
from memplan.planner.tables.dtypes import FLOATS, PACKED
from memplan.planner.tables.errors import UsageError, shorten, shown
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.recipes import RECIPES

STORAGES = ("uint8", "bfloat16", "float16", "float32")


class Checkpoint(NamedTuple):
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
                f"quantization_config of method '{self.name}': {shown(found)} bits per weight are not "
                f"understood (expected {', '.join(map(str, PACKED))}); {INSTEAD}"
            )
        return found

    @property
    def dtype(self) -> str:
        """The dtype of a converted weight's row."""
        return "float8_e4m3fn" if self.format.floating else PACKED[self.bits]

    def converts(self, role: str, name: str) -> bool:
        """Whether a parameter of this role and name is stored quantized; biases of experts are not."""
        kinds = ("linear", "conv1d") * self.format.linears + ("expert",) * self.format.experts
        if role not in kinds or name.endswith("bias"):
            return False
        return not any(skips(pattern, name.rpartition(".")[0]) for pattern in self.skipped)

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
    found = _own(config) or _own(config.get("text_config"))
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


def _own(part: Any) -> Any:
    """The quantization_config of one part of a config; None where it has none, or an empty one."""
    return (part.get("quantization_config") or None) if isinstance(part, Mapping) else None


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
    if config.get("load_in_4bit") is not True:
        raise UsageError(
            "quantization_config of bitsandbytes: expected load_in_4bit or load_in_8bit to be true"
        )
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
            f"{said}: transformers does not quantize it again with bitsandbytes ({s.quant_type}); use "
            f"--method lora, or {INSTEAD}",
        ),
        (
            s.quantize_experts and (s.quant_type not in ("nf4", "fp4") or s.checkpoint_quant != "none"),
            "quantize_experts quantizes experts beside a base that is quantized to 4 bits as it loads: use "
            "--method qlora with quant_type nf4 or fp4, on a checkpoint in 16 bit",
        ),
        (
            s.quantize_experts and bool(s.target_parameters) and not RECIPES[s.recipe].whole_updates,
            "target_parameters on experts that quantize_experts quantizes: peft 0.21 leaves its update on "
            "them (tuners/lora/layer.py _remove_parametrizations), and the next forward fails; leave one out",
        ),
    ]


def lacks(setup: Any) -> str:
    """What is not counted of a run on this checkpoint, "" where all of it is."""
    if setup.checkpoint_quant == "none":
        return ""
    row = FORMATS[setup.checkpoint_quant]
    return row.lacks and f"of a checkpoint quantized with {setup.checkpoint_quant}: {row.lacks}"


def said(setup: Any, config: Config) -> Iterator[str]:
    """What the output says of the checkpoint's own quantization."""
    if setup.checkpoint_quant != "none":
        how = f" {setup.quant_type}" * (setup.quant_type != "none")
        said = f"the checkpoint is quantized ({setup.checkpoint_quant}{how})"
        yield f"{said}: its packed weights are read as they are"
        least, gpu = FORMATS[setup.checkpoint_quant].capability, find_gpu(setup.gpu) if setup.gpu else None
        if gpu is not None and least is not None and gpu.capability is not None and gpu.capability < least:
            yield f"on {gpu.name}, transformers dequantizes it while loading; {INSTEAD}"
    elif _own(config) is not None:
        yield "checkpoint_quant none: the quantized checkpoint's model, stored in 16 bit"


def refuse(setup: Any) -> None:
    """Raise UsageError where the libraries' own step cannot be built on this checkpoint: kernels of these
    formats neither run on tensors without storage nor come with random weights.
    """
    if setup.checkpoint_quant not in ("none", *NO_BITS):
        raise UsageError(
            f"a checkpoint quantized with {setup.checkpoint_quant} can be neither traced nor profiled: "
            f"--engine formula gives a lower bound; {INSTEAD}"
        )


def packed(spec_config: Config, setup: Any) -> Checkpoint | None:
    """The checkpoint whose weights stay packed in a format of their own; None where they are plain, or
    bitsandbytes'.
    """
    if setup.checkpoint_quant in ("none", *NO_BITS):
        return None
    found = read(spec_config)
    return found if found is not None else Checkpoint(setup.checkpoint_quant, {})
