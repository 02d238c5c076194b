"""Which modules a stack casts to fp32 once the model is loaded, by their names."""

from __future__ import annotations

EMBEDDINGS = ("lm_head", "embed_tokens", "wte")
"""axolotl 0.21 loaders/model.py _configure_embedding_dtypes, convert_embedding_modules_dtype."""


def upcast(module: str, kind: str) -> bool:
    """Whether `upcast_modules = kind` (none, norms, norms_and_embeddings) casts the module of that path, with
    all that it holds, trained or not.
    """
    if kind == "none":
        return False
    norm = "norm" in module.rsplit(".", 1)[-1]
    return norm or (kind == "norms_and_embeddings" and any(part in module for part in EMBEDDINGS))
