"""FAMILIES: model_type -> the function that reads its config.json into a ModelSpec. Adding a family is adding one function here.

Each follows transformers' modeling file of that name (5.23: models/<model_type>/modeling_*.py), which a test compares
with the model built on the meta device. The order of linear layers is the order in which the forward calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from planner.blocks import assemble, gated_mlp, gqa, pre_norm
from planner.configcheck import Fields
from planner.errors import UsageError, nearest, shorten
from planner.spec import Layer, ModelSpec

Family = Callable[[Fields], ModelSpec]


def read_config(config: Mapping[str, Any], name: str = "model") -> ModelSpec:
    """The ModelSpec of a parsed config.json. Raises UsageError naming the key, the value and what was expected."""
    fields = Fields(config, name)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        fields.refuse("model_type", model_type, "a name such as 'llama'")
    family = FAMILIES.get(model_type)
    if family is None:
        close = nearest(model_type, FAMILIES)
        like = f" (nearest: {', '.join(close)})" if close else ""
        raise UsageError(f"the formula has no rule for model_type '{shorten(model_type)}'{like}: use --engine trace, "
                         "which runs the transformers class itself")  # fmt: skip
    return family(fields)


def llama(c: Fields) -> ModelSpec:
    """Llama 1, 2, 3, Code Llama, Vicuna, TinyLlama, Yi, SmolLM 1 and 2, DeepSeek LLM: one architecture."""
    bias = c.flag("attention_bias", False)
    attention = gqa(c, qkv_bias=bias, o_bias=bias)
    layer = Layer(attention, gated_mlp(c, bias=c.flag("mlp_bias", False)), pre_norm(c))
    return assemble(c, "LlamaForCausalLM", [layer] * c.layers())


def mistral(c: Fields) -> ModelSpec:
    """Mistral 7B, Nemo, Small: Llama with a sliding window (4096 unless the config says null)."""
    window = c.maybe_size("sliding_window") if "sliding_window" in c.config else 4096
    attention = gqa(c, kv_default=8, window=window)
    return assemble(c, "MistralForCausalLM", [Layer(attention, gated_mlp(c), pre_norm(c))] * c.layers())


def qwen2(c: Fields) -> ModelSpec:
    """Qwen 1.5, 2, 2.5: Llama with biases on q, k and v."""
    attention = gqa(c, kv_default=32, qkv_bias=True)
    return assemble(c, "Qwen2ForCausalLM", [Layer(attention, gated_mlp(c), pre_norm(c))] * c.layers())


FAMILIES: dict[str, Family] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
}
