"""Which modules a stack casts to fp32 once the model is loaded, by their names.

axolotl's passes for adapters (0.18 loaders/model.py _configure_embedding_dtypes,
_prepare_model_for_quantization): norms, routers and embeddings go to fp32; then everything that is not
quantized, by peft's k-bit preparation, which is left out where the experts' parameters are quantized; then
norms and embeddings go back.
"""

from __future__ import annotations

EMBEDDINGS = ("lm_head", "embed_tokens", "wte")
"""axolotl 0.21 loaders/model.py _configure_embedding_dtypes, convert_embedding_modules_dtype."""

RETURNING = ("embed_tokens", "lm_head", "embed_in", "embed_out", "word_embeddings")
"""Parts of the names of embeddings and heads (axolotl 0.18 loaders/utils.py get_linear_embedding_layers)."""

PASSES = ("routers", "unquantized")
"""The values of `upcast_modules` that are axolotl's passes for adapters."""


def upcast(module: str, kind: str) -> bool:
    """Whether after `upcast_modules = kind` the module of that path is in fp32, with all that it holds but
    quantized weights, trained or not.
    """
    if kind == "none":
        return False
    if kind in PASSES:
        return routes(module) if kind == "routers" else not returns(module)
    norm = "norm" in module.rsplit(".", 1)[-1]
    return norm or (
        kind == "norms_and_embeddings" and (routes(module) or any(part in module for part in EMBEDDINGS))
    )


def returns(module: str) -> bool:
    """Whether a module of that name goes back to the model's dtype: a norm, an embedding, a head."""
    return "norm" in module or any(part in module for part in RETURNING)


def routes(module: str) -> bool:
    """Whether a module of that name is a router as axolotl looks for it."""
    return module.endswith(".gate")


def is_expert(name: str, dimensions: int) -> bool:
    """Whether a parameter is one that axolotl quantizes beside linear layers: of three dimensions, with
    `expert` in its name (axolotl 0.18 monkeypatch/moe_quant.py).
    """
    return dimensions >= 3 and "expert" in name.lower()
