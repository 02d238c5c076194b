"""What a formula's prediction assumed, and what a user should know before trusting it: sentences."""

from __future__ import annotations

from collections.abc import Iterator

from planner.methods import METHODS
from planner.parameters import NEVER_QUANTISED
from planner.recipes import RECIPES
from planner.setup import Setup
from planner.symbolic import Symbolic


def assumptions(symbolic: Symbolic, setup: Setup) -> Iterator[str]:
    """What was taken for granted, most telling first."""
    recipe = RECIPES[setup.recipe]
    yield f"recipe {setup.recipe}: {recipe.summary}"
    yield from recipe.notes
    yield from symbolic.spec.notes
    if symbolic.device.assumed and symbolic.device.kind == "cuda":
        yield "no card named: kernels as on compute capability 8.0"
    yield "steady state: the second step or a later one, when optimizer states and cuBLAS workspaces exist"
    yield "reserved is allocated rounded up to 2 MiB segments: the formula does not predict fragmentation (--engine trace does)"
    if setup.attention == "sdpa-efficient":
        yield "sdpa-efficient: grouped key and value heads are repeated before the call"


def warnings(symbolic: Symbolic, setup: Setup) -> Iterator[str]:
    """What can surprise."""
    if setup.quant_type != "none" and symbolic.spec.model_type in NEVER_QUANTISED:
        yield f"transformers does not quantise the linear layers of {symbolic.spec.architecture}: their class is not nn.Linear itself"
    if METHODS[setup.method].trains == "last_layers" and setup.checkpointing != "none":
        yield "only the last layers are trained: checkpointing keeps the inputs of frozen layers too and can need more memory than none"
