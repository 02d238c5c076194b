"""Weights of the parts of a vision-language model beside its language model, from its config.json: how many
elements, in linear layers and elsewhere. The formula counts them; what they compute it leaves to the trace.

Each follows transformers 5.24 models/*/modeling_*.py of its name, which a test compares with the model built
on the meta device. H hidden, I intermediate, L layers, P pixels of a patch's edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memplan.planner.inputs.picture_sizes import has_tower
from memplan.planner.inputs.spec import Extra
from memplan.planner.tables.errors import UsageError, shown

CHANNELS = 3
LARGEST = 2**24
Counts = tuple[int, int]
"""Elements of linear layers' weights, and of everything else (biases among it)."""
LINEAR, OTHER = "vision tower and projector: linear layers", "vision tower and projector: everything else"


def tower_weights(config: Mapping[str, Any], text_hidden: int) -> tuple[Extra, ...] | None:
    """The tower's and projector's weights as two entries; None where memplan has no rule for them, () for a
    model that has none.
    """
    if not has_tower(config):
        return ()
    vision = config.get("vision_config")
    rule = TOWERS.get(str(config.get("model_type")))
    if rule is None or not isinstance(vision, Mapping):
        return None
    try:
        sizes = _Sizes({**DEFAULTS.get(str(config["model_type"]), {}), **vision})
        linear, other = rule(sizes, config, text_hidden)
    except (KeyError, TypeError):  # a number that the class has a default for
        return None
    return (Extra(LINEAR, (linear,), "tower_linear"), Extra(OTHER, (other,), "tower"))


class _Sizes(dict[str, Any]):
    """A part of a config whose sizes are numbers of something. UsageError for one that is not."""

    where = "vision_config."

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, (list, tuple)):  # one for each of several parts or axes
            return value
        whole = type(value) in (int, float) and 0 < value <= LARGEST and value == int(value)
        if not whole:
            raise UsageError(
                f"{self.where}{key} is {shown(value)}: expected a whole number from 1 to {LARGEST:,}"
            )
        return int(value)


def _linear(inputs: int, outputs: int, bias: bool = True) -> Counts:
    return inputs * outputs, outputs if bias else 0


def _sum(*parts: Counts) -> Counts:
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def _times(count: int, part: Counts) -> Counts:
    return count * part[0], count * part[1]


def _transformer(hidden: int, intermediate: int, layers: int) -> Counts:
    """SigLIP's and CLIP's layers: q, k, v and out, two LayerNorms, an MLP."""
    layer = _sum(
        _times(4, _linear(hidden, hidden)),
        _linear(hidden, intermediate),
        _linear(intermediate, hidden),
        (0, 4 * hidden),
    )
    return _times(layers, layer)


def _siglip(vision: Mapping[str, Any]) -> Counts:
    hidden, patch = vision["hidden_size"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    return _sum(
        _transformer(hidden, vision["intermediate_size"], vision["num_hidden_layers"]),
        (0, hidden * (CHANNELS * patch * patch + 1) + patches * hidden + 2 * hidden),
    )


def _gemma(vision: Mapping[str, Any], config: Mapping[str, Any], text: int) -> Counts:
    if vision.get("vision_use_head", True):
        raise KeyError("a pooling head")
    return _sum(_siglip(vision), (0, vision["hidden_size"] * text + vision["hidden_size"]))


def _idefics(vision: Mapping[str, Any], config: Mapping[str, Any], text: int) -> Counts:
    whole = _Sizes({"scale_factor": 2} | dict(config))
    whole.where = ""
    scale = whole["scale_factor"]
    return _sum(_siglip(vision), _linear(vision["hidden_size"] * scale**2, text, bias=False))


def _llava(vision: Mapping[str, Any], config: Mapping[str, Any], text: int) -> Counts:
    if vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise KeyError("another tower than CLIP's (Pixtral's)")
    hidden, patch = vision["hidden_size"], vision["patch_size"]
    positions = (vision["image_size"] // patch) ** 2 + 1
    return _sum(
        _transformer(hidden, vision["intermediate_size"], vision["num_hidden_layers"]),
        (0, hidden * CHANNELS * patch * patch + hidden + positions * hidden + 4 * hidden),
        _linear(hidden, text),
        _linear(text, text),
    )


def _patch_pixels(vision: Mapping[str, Any]) -> int:
    return int(CHANNELS * vision["temporal_patch_size"] * vision["patch_size"] ** 2)


def _qwen2(vision: Mapping[str, Any], config: Mapping[str, Any], text: int) -> Counts:
    hidden, merged = vision["embed_dim"], vision["embed_dim"] * vision["spatial_merge_size"] ** 2
    inner = int(hidden * vision["mlp_ratio"])
    block = _sum(
        _linear(hidden, 3 * hidden),
        _linear(hidden, hidden),
        _linear(hidden, inner),
        _linear(inner, hidden),
        (0, 4 * hidden),
    )
    return _sum(
        _times(vision["depth"], block),
        (0, hidden * _patch_pixels(vision) + 2 * hidden),
        _linear(merged, merged),
        _linear(merged, vision["hidden_size"]),
    )


def _qwen25(vision: Mapping[str, Any], config: Mapping[str, Any], text: int) -> Counts:
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    block = _sum(
        _linear(hidden, 3 * hidden),
        _linear(hidden, hidden),
        _times(2, _linear(hidden, inner)),
        _linear(inner, hidden),
        (0, 2 * hidden),
    )
    return _sum(
        _times(vision["depth"], block),
        (0, hidden * _patch_pixels(vision) + hidden),
        _linear(merged, merged),
        _linear(merged, vision["out_hidden_size"]),
    )


def _qwen3(vision: Mapping[str, Any], config: Mapping[str, Any], text: int) -> Counts:
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    block = _sum(
        _linear(hidden, 3 * hidden),
        _linear(hidden, hidden),
        _linear(hidden, inner),
        _linear(inner, hidden),
        (0, 4 * hidden),
    )
    merger = _sum(_linear(merged, merged), _linear(merged, vision["out_hidden_size"]))
    deep = len(vision["deepstack_visual_indexes"])
    return _sum(
        _times(vision["depth"], block),
        (0, hidden * (_patch_pixels(vision) + 1) + vision["num_position_embeddings"] * hidden),
        _times(1 + deep, merger),
        (0, 2 * hidden + deep * 2 * merged),
    )


_QWEN = {"patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {**_QWEN, "depth": 32, "embed_dim": 1280, "mlp_ratio": 4},
    "qwen2_5_vl": _QWEN,
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), {**_QWEN, "patch_size": 16}),
    "gemma3": {"image_size": 896},
}
"""What published config.json files leave to their class."""

TOWERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], int], Counts]] = {
    "gemma3": _gemma,
    "idefics3": _idefics,
    "smolvlm": _idefics,
    "llava": _llava,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen25,
    "qwen3_vl": _qwen3,
    "qwen3_vl_moe": _qwen3,
}
