"""What a method adds beside no linear layer: bottlenecks after attention and MLP, virtual tokens before the
input or before every layer's keys and values.

H hidden, R the bottleneck's size, V virtual tokens, L layers, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import Layer, Mlp, ModelSpec, prefix_sizes
from memplan.planner.tables.errors import UsageError


def bottlenecks(spec: ModelSpec, setup: Setup) -> dict[str, tuple[ParameterSpec, ...]]:
    """The tensors after the attention and after the MLP of every layer (Houlsby et al. 2019, section 2.1), by
    that part's name.
    """
    size, hidden = setup.bottleneck or 64, spec.hidden
    shapes = (
        ("down.weight", (size, hidden)),
        ("down.bias", (size,)),
        ("up.weight", (hidden, size)),
        ("up.bias", (hidden,)),
    )
    prefix = f"{spec.layers[0][1].prefix}.*."
    return {
        part: tuple(
            ParameterSpec(
                f"{prefix}{module}.bottleneck.{name}", shape, _dtype(setup), spec.depth, True, "adapter"
            )
            for name, shape in shapes
        )
        for part, module in _modules(spec.layers[0][1])
    }


def _modules(layer: Layer) -> Iterator[tuple[str, str]]:
    """The layer's own modules whose output is added to the residual stream."""
    yield "attention", layer.attention.linears[0].name.partition(".")[0]
    last = layer.mlp.linears[-1].name if isinstance(layer.mlp, Mlp) else layer.mlp.parameters[0][0]
    yield "mlp", last.partition(".")[0]


def prompts(spec: ModelSpec, setup: Setup) -> dict[str, tuple[ParameterSpec, ...]]:
    """The virtual tokens' embeddings, V x H (peft 0.21 tuners/prompt_tuning/model.py PromptEmbedding)."""
    if spec.embedding_dim != spec.hidden:
        raise UsageError(
            "prompt tuning needs embeddings as wide as the layers: peft joins virtual tokens of the hidden "
            "size to them"
        )
    shape = (setup.virtual_tokens or 20, spec.hidden)
    return {
        "prompt": (ParameterSpec("prompt_encoder.embedding.weight", shape, _dtype(setup), 1, True, "prompt"),)
    }


def prefixes(spec: ModelSpec, setup: Setup) -> dict[str, tuple[ParameterSpec, ...]]:
    """Keys and values of V virtual tokens for every layer in one table, V x (L x 2 x K x D) (peft 0.21
    tuners/prefix_tuning/model.py PrefixEncoder without projection).

    UsageError where no real step runs: under checkpointing, or where the model's own keys have other heads
    than PEFT's.
    """
    if setup.checkpointing != "none":
        raise UsageError(
            "prefix-tuning cannot run with checkpointing, which drops the cache that holds the prefix: use "
            "--no-checkpointing"
        )
    attention = spec.layers[0][1].attention
    depth, made, width = prefix_sizes(spec)
    own = attention.heads if attention.kv == "expanded" else attention.kv_heads
    if attention.kind == "mla" or made != own:
        raise UsageError(
            f"peft makes a prefix of {made} heads, which cannot be concatenated with the model's own "
            "keys: use another method"
        )
    shape = (setup.virtual_tokens or 20, depth * 2 * width)
    return {
        "prefix": (ParameterSpec("prompt_encoder.embedding.weight", shape, _dtype(setup), 1, True, "prompt"),)
    }


def _dtype(setup: Setup) -> str:
    return "float32" if setup.trainable_dtype == "float32" else setup.adapter_dtype


ADDED: dict[str, Callable[[ModelSpec, Setup], dict[str, tuple[ParameterSpec, ...]]]] = {
    "adapter": bottlenecks,
    "prompt-tuning": prompts,
    "prefix-tuning": prefixes,
}
