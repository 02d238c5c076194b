"""FAMILIES: model_type -> the function that reads its config.json into a ModelSpec. Adding a family is adding
one function and its row.

Each follows transformers' modeling file of that name, which a test compares with the model built on the meta
device. The order of linear layers is the order in which the forward calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from memplan.planner.inputs.families import gpt, layer_norm, llama, moe
from memplan.planner.inputs.families.fields import Fields
from memplan.planner.inputs.families.towers import tower_weights
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError, nearest, shorten

FAMILIES: dict[str, Callable[[Fields], ModelSpec]] = {
    "bloom": gpt.bloom,
    "cohere": layer_norm.cohere,
    "cohere2": layer_norm.cohere2,
    "deepseek_v2": moe.deepseek_v2,
    "deepseek_v3": moe.deepseek_v3,
    "falcon": gpt.falcon,
    "gemma": llama.gemma,
    "gemma2": llama.gemma2,
    "gemma3_text": llama.gemma3,
    "gpt2": gpt.gpt2,
    "gpt_bigcode": gpt.gpt_bigcode,
    "gpt_neox": gpt.gpt_neox,
    "gpt_oss": moe.gpt_oss,
    "gptj": gpt.gptj,
    "granite": llama.granite,
    "granitemoe": moe.granitemoe,
    "llama": llama.llama,
    "mistral": llama.mistral,
    "mixtral": moe.mixtral,
    "olmo": llama.olmo,
    "olmo2": llama.olmo2,
    "olmo3": llama.olmo3,
    "olmoe": moe.olmoe,
    "opt": gpt.opt,
    "phi": layer_norm.phi,
    "phi3": llama.phi3,
    "phimoe": moe.phimoe,
    "qwen2": llama.qwen2,
    "qwen2_moe": moe.qwen2_moe,
    "qwen3": llama.qwen3,
    "qwen3_moe": moe.qwen3_moe,
    "smollm3": llama.smollm3,
    "stablelm": layer_norm.stablelm,
    "starcoder2": layer_norm.starcoder2,
}

# Language parts of vision-language models that have the layers of another family, and configs that keep the
# language model's keys beside `vision_config` (Qwen2-VL's, as published).
SAME_AS = {
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
NESTED = ("text_config", "language_config", "llm_config")


def read_config(config: Mapping[str, Any], name: str = "model") -> ModelSpec:
    """The ModelSpec of a parsed config.json; of a vision-language config, that of its language part, with a
    note that says so.

    Raises UsageError naming the key, the value and what was expected.
    """
    fields = Fields(language_part(config), name)
    model_type = fields.config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        fields.refuse("model_type", model_type, "a name such as 'llama'")
    if fields.config is not config:
        outer = shorten(str(config.get("model_type")), 40)
        fields.notes.append(
            f"the language part ({shorten(model_type, 40)}) of a {outer} config: of vision or audio parts no "
            "more than the weights is counted"
        )
    family = FAMILIES.get(model_type)
    if family is None:
        close = nearest(model_type, FAMILIES)
        like = f" (nearest: {', '.join(close)})" if close else ""
        raise UsageError(
            f"the formula has no rule for model_type '{shorten(model_type)}'{like}: {trace_instead()}, which "
            "runs the transformers class itself"
        )
    return _with_tower(family(fields), config)


def _with_tower(spec: ModelSpec, config: Mapping[str, Any]) -> ModelSpec:
    """The spec with the weights of the parts beside its language model, and what of them is not counted."""
    outer, found = shorten(str(config.get("model_type")), 40), tower_weights(config, spec.hidden)
    if found == ():
        return spec
    if found is None:
        return replace(spec, whole_type=outer, uncounted=f"the vision or audio part of a {outer} model")
    why = f"adapters in the vision part of a {outer} model, and what it saves for pictures"
    return replace(spec, whole_type=outer, extras=(*spec.extras, *found), uncounted=why)


def trace_instead() -> str:
    """What answers for a family that the formula lacks: the trace, or how to get it."""
    missing = [name for name in ("torch", "transformers", "peft", "accelerate") if find_spec(name) is None]
    return "pip install 'memplan[trace]' for the trace" if missing else "use --engine trace"


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's own config inside a vision-language config; `config` itself where there is none or it
    is a text model.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return config
    inner = next(
        (config[key] for key in NESTED if isinstance(config.get(key), Mapping) and config[key]), None
    )
    if inner is not None:
        shared = {
            key: config[key] for key in ("dtype", "torch_dtype", "quantization_config") if key in config
        }
        return _renamed({**shared, **inner})
    return _renamed(config)


def _renamed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    model_type = config.get("model_type")
    same = SAME_AS.get(model_type) if isinstance(model_type, str) else None
    return config if same is None else {**config, "model_type": same}
