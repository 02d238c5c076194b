"""What differs between families' code in the order of calls and in what a call lets go (transformers 5.24
models/*/modeling_*.py).
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.tape.tape import Shape, Tape, Tensor

DROPS_INSIDE = ("bloom", "codegen", "gpt2", "gpt_bigcode", "gptj", "starcoder2")
"""Model types whose attention and MLP modules end with their dropout; others' layers drop what these
return."""
ADDS_INSIDE = ("bloom",)
"""Model types whose modules add the residual themselves (modeling_bloom.py dropout_add), and whose attention
keeps what it projects under a name of its own until it returns."""
PROJECTS_FIRST = (
    "cohere",
    "cohere2",
    "exaone4",
    "gemma3",
    "gemma3_text",
    "glm4_moe",
    "persimmon",
    "stablelm",
)
"""Model types that make queries, keys and values before the norms of queries and keys; others norm, or scale,
each as it is made."""

NORMS_BY_HEAD = ("gemma3", "gemma3_text")
"""Model types that norm queries and keys once they are seen head by head; Liger's norm then copies them, and
their gradient, into that order."""
RESIDUAL_FIRST = ("cohere", "cohere2", "stablelm")
"""Model types whose parallel layers add the attention's output to the residual, and the MLP's to the sum;
others add the two branches first."""
NAMES_NO_NORM = ("gpt_neox",)
"""Model types whose parallel layers give their normed input no name; others' goes when the sum takes it."""


def drops_inside(w: Context) -> bool:
    """Whether the modules drop, not the layer."""
    return w.parameter_table.spec.model_type in DROPS_INSIDE


def adds_inside(w: Context) -> bool:
    """Whether the modules add the residual, not the layer."""
    return w.parameter_table.spec.model_type in ADDS_INSIDE


def projects_first(w: Context) -> bool:
    """Whether all three projections come before any norm of their outputs."""
    return w.parameter_table.spec.model_type in PROJECTS_FIRST


def norms_by_head(w: Context) -> bool:
    """Whether Liger's norms of queries and keys read them head by head."""
    return w.parameter_table.spec.model_type in NORMS_BY_HEAD and "rms_norm" in w.kernels


def residual_first(w: Context) -> bool:
    """Whether a parallel layer's sum begins with the residual."""
    return w.parameter_table.spec.model_type in RESIDUAL_FIRST


def names_norm(w: Context) -> bool:
    """Whether a parallel layer's normed input keeps its name until the layer's sum is made."""
    return w.parameter_table.spec.model_type not in NAMES_NO_NORM


def seen_as(t: Tape, x: Tensor, shape: Shape) -> Tensor:
    """A view of another shape: its gradient is a view too, to which nothing is added in place."""
    whole = x.shape
    return t.op(
        "view",
        (x,),
        shape,
        x.dtype,
        alias=x,
        backward=lambda t, n, g: [Tensor(g.buffer, whole, g.dtype)],
    )
