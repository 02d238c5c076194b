"""METHODS: what each way of fine-tuning trains, and the Setup defaults that it brings.

Adding a method is adding a row here; a test compares its trainable count with peft's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Trains = Literal["all", "last_layers", "biases", "adapter", "nothing"]


@dataclass(frozen=True, slots=True)
class Method:
    """One method: what it trains, the PEFT type behind it, the Setup defaults it brings and the fields only
    it reads (`serves`: with adapters beside an inference). `traced`: the formula has no rule for it.
    """

    name: str
    trains: Trains
    peft_type: str | None = None
    quantized: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    over_recipe: Mapping[str, Any] = field(default_factory=dict)  # defaults that a recipe's do not replace
    summary: str = ""
    traced: bool = False
    serves: tuple[str, ...] = ()


_ON_LAYERS = ("targets", "modules_to_save", "adapter_dtype", "layers_to_transform")
_LORA_READS = ("rank", "alpha", "dropout", *_ON_LAYERS)
_ALSO_PARAMETERS = (
    *_LORA_READS,
    "target_parameters",
)  # peft 0.21 tuners/lora/layer.py ParamWrapper: not DoRA's


def _table(*rows: Method) -> dict[str, Method]:
    return {row.name: row for row in rows}


METHODS: dict[str, Method] = _table(
    Method("full", "all", reads=("trained_parameters",), summary="every parameter is trained"),
    Method(
        "freeze",
        "last_layers",
        defaults={"trainable_layers": 2},
        reads=("trainable_layers",),
        summary="the last n decoder layers are trained",
    ),
    Method(
        "lora",
        "adapter",
        "LORA",
        reads=_ALSO_PARAMETERS,
        summary="low-rank adapters beside frozen linear layers",
    ),
    Method(
        "qlora", "adapter", "LORA", quantized=True, reads=_ALSO_PARAMETERS, summary="LoRA on a 4-bit base"
    ),
    Method(
        "adalora",
        "adapter",
        "ADALORA",
        defaults={"init_rank": 12, "target_rank": 8, "importance_buffers": True},
        reads=(*_LORA_READS, "init_rank", "target_rank", "importance_buffers"),
        summary="SVD-shaped adapters whose rank budget is pruned while training",
    ),
    Method("dora", "adapter", "LORA", reads=_LORA_READS, summary="LoRA with a trained magnitude per output"),
    Method(
        "rslora",
        "adapter",
        "LORA",
        reads=_ALSO_PARAMETERS,
        summary="LoRA scaled by alpha / sqrt(r): the same memory",
    ),
    Method(
        "lora+",
        "adapter",
        "LORA",
        reads=_ALSO_PARAMETERS,
        summary="LoRA with two learning rates: the same memory",
    ),
    Method("lora-fa", "adapter", "LORA", reads=_ALSO_PARAMETERS, summary="LoRA with A frozen"),
    Method(
        "prefix-tuning",
        "adapter",
        "PREFIX_TUNING",
        defaults={"virtual_tokens": 20},
        reads=("virtual_tokens",),
        summary="trained keys and values before every layer",
    ),
    Method(
        "prompt-tuning",
        "adapter",
        "PROMPT_TUNING",
        defaults={"virtual_tokens": 20},
        reads=("virtual_tokens",),
        summary="trained embeddings before the input",
    ),
    Method(
        "ia3",
        "adapter",
        "IA3",
        reads=("targets", "modules_to_save", "adapter_dtype"),
        over_recipe={"targets": ("peft-default",)},
        summary="trained scales on keys, values and the MLP",
    ),
    Method(
        "adapter",
        "adapter",
        None,
        defaults={"bottleneck": 64},
        reads=("bottleneck",),
        summary="bottleneck adapters after attention and MLP",
    ),
    Method(
        "p-tuning",
        "adapter",
        "P_TUNING",
        defaults={"virtual_tokens": 20},
        reads=("virtual_tokens",),
        summary="trained embeddings before the input, made by a trained MLP",
        traced=True,
    ),
    Method(
        "vera",
        "adapter",
        "VERA",
        reads=("rank", "dropout", *_ON_LAYERS),
        over_recipe={"rank": 256},  # peft 0.21 tuners/vera/config.py r
        summary="trained vectors between random matrices that all layers share",
        traced=True,
    ),
    Method(
        "oft",
        "adapter",
        "OFT",
        reads=_ON_LAYERS,
        summary="trained rotations of each layer's input, in blocks of 32",
        traced=True,
    ),
    Method("bitfit", "biases", summary="the biases that the model has are trained", traced=True),
    Method(
        "inference",
        "nothing",
        reads=("adapters",),
        serves=("rank", "alpha", "targets", "adapter_dtype"),
        over_recipe={"autocast": "none"},  # the Trainer's, not generate's
        summary="weights and KV cache, nothing trained; --set adapters=N: LoRA adapters beside them",
    ),
)


def reads_of(method: str, adapters: int | None) -> tuple[str, ...]:
    """The fields that a method reads of those that not every method does."""
    row = METHODS[method]
    return (*row.reads, *row.serves) if adapters else row.reads
