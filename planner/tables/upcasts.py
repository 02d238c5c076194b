"""What axolotl casts to fp32 and back once a model for adapters is loaded (axolotl 0.18 loaders/model.py
_configure_embedding_dtypes, _prepare_model_for_quantization).

Norms, routers and embeddings go to fp32; then everything that is not quantized, by peft's k-bit preparation,
which is left out where the experts' parameters are quantized; then norms and embeddings go back.
"""

from __future__ import annotations

EMBEDDINGS = ("embed_tokens", "lm_head", "embed_in", "embed_out", "word_embeddings")
"""Parts of the names of embeddings and heads (axolotl 0.18 loaders/utils.py get_linear_embedding_layers)."""

PASSES = ("routers", "unquantized")
"""The values of `upcast_modules` that are these passes."""


def returns(module: str) -> bool:
    """Whether a module of that name goes back to the model's dtype: a norm, an embedding, a head."""
    return "norm" in module or any(part in module for part in EMBEDDINGS)


def routes(module: str) -> bool:
    """Whether a module of that name is a router as axolotl looks for it."""
    return module.endswith(".gate")


def is_expert(name: str, dimensions: int) -> bool:
    """Whether a parameter is one that axolotl quantizes beside linear layers: of three dimensions, with
    `expert` in its name (axolotl 0.18 monkeypatch/moe_quant.py).
    """
    return dimensions >= 3 and "expert" in name.lower()
