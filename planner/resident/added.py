"""What a method adds beside no linear layer: bottlenecks after attention and MLP, virtual tokens before the input.

H hidden, R the bottleneck's size, V virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from planner.errors import UsageError
from planner.resident.stored import Stored
from planner.setup import Setup
from planner.spec import Layer, Mlp, ModelSpec


def bottlenecks(spec: ModelSpec, setup: Setup) -> dict[str, tuple[Stored, ...]]:
    """The tensors after the attention and after the MLP of every layer (Houlsby et al. 2019, section 2.1), by that part's name."""
    size, hidden = setup.bottleneck or 64, spec.hidden
    shapes = (("down.weight", (size, hidden)), ("down.bias", (size,)), ("up.weight", (hidden, size)), ("up.bias", (hidden,)))
    prefix = f"{spec.layers[0][1].prefix}.*."
    return {
        part: tuple(
            Stored(f"{prefix}{module}.bottleneck.{name}", shape, _dtype(setup), spec.depth, True, "adapter") for name, shape in shapes
        )
        for part, module in _modules(spec.layers[0][1])
    }


def _modules(layer: Layer) -> Iterator[tuple[str, str]]:
    """The layer's own modules whose output is added to the residual stream."""
    yield "attention", layer.attention.linears[0].name.partition(".")[0]
    last = layer.mlp.linears[-1].name if isinstance(layer.mlp, Mlp) else layer.mlp.parameters[0][0]
    yield "mlp", last.partition(".")[0]


def prompts(spec: ModelSpec, setup: Setup) -> dict[str, tuple[Stored, ...]]:
    """The virtual tokens' embeddings, V x H (peft 0.21 tuners/prompt_tuning/model.py PromptEmbedding)."""
    if spec.embedding_dim != spec.hidden:
        raise UsageError("prompt tuning needs embeddings as wide as the layers: peft joins virtual tokens of the hidden size to them")
    shape = (setup.virtual_tokens or 20, spec.hidden)
    return {"prompt": (Stored("prompt_encoder.embedding.weight", shape, _dtype(setup), 1, True, "adapter"),)}


def _dtype(setup: Setup) -> str:
    return "float32" if setup.trainable_dtype == "float32" else setup.adapter_dtype


ADDED: dict[str, Callable[[ModelSpec, Setup], dict[str, tuple[Stored, ...]]]] = {"adapter": bottlenecks, "prompt-tuning": prompts}
