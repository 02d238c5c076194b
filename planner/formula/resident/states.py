"""The shapes of optimizer states: one function for each Rule of optimizer_row.py. n elements of the
parameter.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.symbolic.expr import Sized, ceil_div
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.dtypes import itemsize
from memplan.planner.tables.optimizer_row import Optimizer, Rule
from memplan.planner.tables.optimizers import trained_by

# elements; smaller states stay 32-bit (bitsandbytes 0.50 optim/optimizer.py init_state: `p.numel() < 4096`)
FLOOR_8BIT = 4096
# elements; smaller states are not paged (bitsandbytes 0.50 optim/optimizer.py get_state_buffer: `p.numel() <
# 1e5`)
FLOOR_PAGED = 100_000
BLOCK_8BIT = 256  # elements for each fp32 constant of an 8-bit state (the same file)

EMBEDDINGS = ("embedding", "position", "prompt")  # roles of nn.Embedding weights


def optimizer_of(row: Optimizer, stored: ParameterSpec) -> Optimizer:
    """The optimizer that trains a tensor where the setup's is `row`."""
    return trained_by(row, len(stored.shape), stored.role in (*EMBEDDINGS, "head"))


State = tuple[
    str, tuple[Sized, ...], str, bool, str
]  # suffix, shape, dtype, whether a paged optimizer pages it, its size in words


def _like(stored: ParameterSpec, elements: int | None) -> list[State]:
    return [("", stored.shape, stored.dtype, True, "in the parameter's dtype")]


def _float32(stored: ParameterSpec, elements: int | None) -> list[State]:
    return [("", stored.shape, "float32", True, "4 B an element")]


def _blockwise8(stored: ParameterSpec, elements: int | None) -> list[State]:
    assert elements is not None
    if elements < FLOOR_8BIT:
        return [
            ("", stored.shape, "float32", True, f"32-bit, since it has fewer than {FLOOR_8BIT:,} elements")
        ]
    constants = (-(-elements // BLOCK_8BIT),)
    return [
        ("", stored.shape, "uint8", True, f"1 B an element, in blocks of {BLOCK_8BIT}"),
        (" constants", constants, "float32", False, f"one fp32 for each block of {BLOCK_8BIT} elements"),
    ]


def _torchao(
    codes: Callable[[ParameterSpec], tuple[Sized, ...]], table: int, size: str
) -> Callable[[ParameterSpec, int | None], list[State]]:
    def found(stored: ParameterSpec, elements: int | None) -> list[State]:
        assert elements is not None
        if not quantized_by_torchao(elements):
            why = f"not quantized: below {FLOOR_8BIT:,} elements, or no multiple of {BLOCK_8BIT}"
            return [("", stored.shape, stored.dtype, True, why)]
        scales = (elements // BLOCK_8BIT,)
        return [
            (" codes", codes(stored), "uint8", False, f"{size}, in blocks of {BLOCK_8BIT}"),
            (" scale", scales, "float32", False, f"one fp32 for each block of {BLOCK_8BIT} elements"),
            (" qmap", (table,), "float32", False, "the values that codes stand for, each state's own"),
        ]

    return found


def quantized_by_torchao(elements: int) -> bool:
    """Whether torchao quantizes the states of a tensor (torchao 0.18 optim/adam.py _new_buffer)."""
    return elements >= FLOOR_8BIT and elements % BLOCK_8BIT == 0


def elements_of(stored: ParameterSpec, setup: Setup) -> int:
    """Elements as a number: a floor decides here, so the rank is part of the discrete structure."""
    rank = setup.init_rank if setup.method == "adalora" and setup.init_rank else setup.rank
    return stored.elements.evaluate({"R": rank})


def _embedding8(stored: ParameterSpec, elements: int | None) -> list[State]:
    return [
        (
            "",
            stored.shape,
            "float32",
            True,
            "32-bit: the Trainer exempts embeddings (transformers 5.23 trainer.py create_optimizer)",
        )
    ]


def _step(stored: ParameterSpec, elements: int | None) -> list[State]:
    return [("", (1,), "float32", False, "the step count")]


def _factored(stored: ParameterSpec, elements: int | None) -> list[State]:
    """Adafactor: row and column means over the last two dimensions, a full tensor for vectors, and each
    tensor's root mean square.
    """
    scale: State = (" RMS", (1,), "float32", False, "one fp32")
    if len(stored.shape) < 2:
        return [*_float32(stored, elements), scale]
    *front, rows, columns = stored.shape
    means = (("rows", (*front, rows), "columns"), ("columns", (*front, columns), "rows"))
    return [
        *((f" {what}", shape, "float32", False, f"fp32 means over {over}") for what, shape, over in means),
        scale,
    ]


def _means(stored: ParameterSpec, elements: int | None) -> list[State]:
    return [state for state in _factored(stored, elements) if state[0] != " RMS"]


def _basis(dtype: str) -> Callable[[ParameterSpec, int | None], list[State]]:
    """`rank` singular vectors in 16 bits; in fp32 they are a view of all of them."""

    def found(stored: ParameterSpec, elements: int | None) -> list[State]:
        assert stored.projector is not None
        rank, right = stored.projector
        if "float32" in (dtype, stored.dtype):
            why = "all singular vectors in fp32, of which a view is used"
            return [("", stored.vectors(right), "float32", False, why)]
        return [("", stored.vectors(right, rank), stored.dtype, False, f"{rank} singular vectors")]

    return found


def _random(stored: ParameterSpec, elements: int | None) -> list[State]:
    assert stored.projector is not None
    rank, right = stored.projector
    return [("", stored.vectors(right, rank), stored.dtype, False, f"a random projection of rank {rank}")]


def _kahan(stored: ParameterSpec, elements: int | None) -> list[State]:
    if itemsize(stored.dtype) == 2:
        return [("", stored.shape, stored.dtype, True, "Kahan's compensation of a 16-bit weight")]
    return [("", (1,), "uint8", False, "a byte: the weight has 32 bits")]


PAIRS: dict[Rule, Rule] = {"pair32": "float32", "pair8": "blockwise8"}
"""Rules whose tensors are twice those of another, stacked (bitsandbytes 0.50 optim/ademamix.py:
`_get_state_double_buffer`, absmax1).
"""
STATES: dict[Rule, Callable[[ParameterSpec, int | None], list[State]]] = {
    "like": _like,
    "float32": _float32,
    "blockwise8": _blockwise8,
    "ao8": _torchao(lambda stored: stored.shape, 256, "1 B an element"),
    "ao4": _torchao(lambda stored: (ceil_div(stored.elements, 2),), 16, "half a byte an element"),
    "step": _step,
    "factored": _factored,
    "means": _means,
    "basis": _basis("like"),
    "basis32": _basis("float32"),
    "random": _random,
    "kahan": _kahan,
    "one": lambda stored, elements: [("", (1,), stored.dtype, False, "one value")],
    "one32": lambda stored, elements: [("", (1,), "float32", False, "one fp32")],
    "none": lambda stored, elements: [],
}


def states(rule: Rule, stored: ParameterSpec, elements: int | None, embeddings_32bit: bool) -> list[State]:
    """The state tensors that a rule makes for one parameter of n `elements`; `embeddings_32bit`: see Loop."""
    if rule in PAIRS:
        single = states(PAIRS[rule], stored, elements, embeddings_32bit)
        return [
            (suffix, (2, *shape), dtype, pageable, f"{size}; two of them: a fast and a slow average")
            for suffix, shape, dtype, pageable, size in single
        ]
    if rule == "blockwise8" and embeddings_32bit and stored.role in EMBEDDINGS:
        return _embedding8(stored, elements)
    return STATES[rule](stored, elements)
