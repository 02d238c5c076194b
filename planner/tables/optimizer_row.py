"""Optimizer: what a row of OPTIMIZERS says, and the rules by which a state's size follows from its parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memplan.planner.tables.optimizer_steps import Mode, Step

Rule = Literal[
    "like",
    "float32",
    "blockwise8",
    "pair32",
    "pair8",
    "ao8",
    "ao4",
    "step",
    "factored",
    "means",
    "basis",
    "basis32",
    "random",
    "kahan",
    "one",
    "one32",
    "none",
]
"""How a state's size follows from its parameter of n elements:
like        zeros_like(p): n elements of p's dtype
float32     n fp32 elements
blockwise8  n uint8 elements and ceil(n / 256) fp32 block constants; below 4,096 elements 32-bit (bitsandbytes optim/optimizer.py)
pair32      two of float32, stacked: AdEMAMix's fast and slow averages (bitsandbytes optim/ademamix.py)
pair8       two of blockwise8, stacked, with two rows of block constants (the same file)
ao8         n uint8 codes, n / 256 fp32 scales, and a table of 256 fp32 values of its own; of p's dtype where n is below 4,096 or
            no multiple of 256 (torchao optim/adam.py _new_buffer, optim/subclass_8bit.py)
ao4         n / 2 uint8 codes, n / 256 fp32 scales and a table of 16, else the same (optim/subclass_4bit.py)
step        one fp32 scalar on the device (fused torch optimizers; the others keep it on the host)
kahan       n elements of p's dtype where that has 16 bits, else one byte (torch-optimi's Triton steps)
one, one32  a single value, of p's dtype or fp32
factored    Adafactor's row and column means for 2-D tensors, n fp32 elements for others (transformers optimization.py)
means       the same without a root mean square of the weight (lomo-optim adalomo.py)
basis       of a projected matrix: `rank` singular vectors of p's dtype; of fp32 ones a view of all of them, which keeps all
            (galore_torch galore_projector.py get_orthogonal_matrix)
basis32     the same of a gradient that was cast to fp32 before
random      a random matrix of the same shape, of p's dtype (apollo_torch random_projector.py)
"""
FLOORED = ("blockwise8", "pair8", "ao8", "ao4")
"""Rules that keep small tensors unquantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """One optimizer: its class, its states per trainable tensor, and what its step makes in each of its modes
    (the default first).
    """

    name: str
    cls: str  # the class by its full name
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of its constructor, beside lr and the mode
    states: tuple[tuple[str, Rule], ...]
    step: Mapping[Mode, Step]
    source: str
    paged: bool = False
    on_host: bool = False  # its states are on the host between steps
    at_once: bool = False  # its states are made with it, not in its first step
    trains: bool = False  # it has a `train` method, which its step insists on
    group: Mapping[str, Any] = field(
        default_factory=dict
    )  # of its groups, the projected ones where it has such
    others: str | None = None  # who trains what is no matrix of a hidden layer, where this one cannot
    projects: tuple[
        tuple[str, Rule], ...
    ] = ()  # what it keeps beside for a matrix whose gradient it projects
    projected: Step = ()  # what its step makes of such a matrix, instead of `step`
    in_backward: bool = False  # it steps while the backward runs, whoever asks for it
    behind: bool = False  # a parameter is stepped when the next one's gradient comes
    of_frozen: bool = False  # it keeps states of frozen parameters too

    @property
    def library(self) -> str:
        """The package that has the class."""
        return self.cls.partition(".")[0]

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The implementations that it has (foreach, fused, ...), the default first."""
        return tuple(self.step)

    @property
    def floors(self) -> bool:
        """Whether the number of a tensor's elements decides how a state is kept: in 8 bits, or in pageable
        memory.
        """
        return self.paged or any(rule in FLOORED for _, rule in self.states)

    @property
    def low_rank(self) -> bool:
        """Whether it projects the gradients of matrices to a low rank."""
        return bool(self.projects)
