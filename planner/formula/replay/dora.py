"""The norms that peft takes of every DoRA layer while it adds the adapters: the base weight whole in 16 or 32
bit, the product of the adapter, their sum.

peft 0.21 tuners/lora/dora.py DoraLinearLayer.update_layer. N x K the base weight, R the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Protocol

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.resident.adapters import Adapter
from memplan.planner.formula.resident.constants import matrix
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.sharding.strategies import PARALLEL
from memplan.planner.formula.tape.ops import promote
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.dtypes import itemsize

MAGNITUDE = "lora_magnitude_vector"
FOUR_BIT = ("nf4", "fp4")
COPIED = ("quantization constants", "4-bit code", "nested offset", "nested constants", "nested code")
"""A QuantState's tensors in the order in which a deep copy meets them (bitsandbytes 0.50 functional.py)."""


class Writer(Protocol):
    """What the norms need of the load that is under way."""

    parameter_table: ParameterTable
    setup: Setup
    values: Mapping[str, int]
    out: Events

    def elements(self, stored: ParameterSpec) -> int:
        """How many elements a tensor has at the run's rank."""
        ...

    def keep(self, stored: ParameterSpec, layer: int, dtype: str) -> None:
        """Allocates a layer's tensor, which stays, in the dtype in which it is made."""
        ...


def norms_at_load(setup: Setup) -> bool:
    """Whether the load takes the norms of a process's own whole weights: where ranks share the parameters
    they are gathered for it, which is not followed.
    """
    shared = setup.gpus > 1 and "parameters" in PARALLEL[setup.parallel].divides
    return setup.method == "dora" and not shared


class DoraNorms:
    """Writes the norm of one layer after another into a load's events."""

    def __init__(self, load: Writer) -> None:
        self.load, self.out, self.setup = load, load.out, load.setup
        table = load.parameter_table
        self.layers = dict(_layers(table)) if norms_at_load(load.setup) else {}

    def takes(self, stored: ParameterSpec) -> bool:
        """Whether this tensor is the vector of a layer's norms."""
        return stored.name in self.layers

    def write(self, vector: ParameterSpec, layer: int, own: str) -> None:
        """The norm of one layer, which stays as its magnitude; `own`: the dtype in which its adapter is."""
        adapter, base, bias = self.layers[vector.name]
        out, name = self.out, base.name
        rows, columns = matrix(base)
        n = rows * columns
        wide = "float32" if own == "float16" else own

        def made(what: str, dtype: str, count: int = n) -> int:
            shape = (rows, columns) if count == n else (count,)
            out.about = (name, shape, dtype, f" {what}")
            return out.alloc(count * itemsize(dtype))

        floats = []
        if own == "float16":
            for short in ("lora_A", "lora_B"):
                elements = self.load.elements(adapter.tensor(short))
                floats.append(made("adapter in fp32", wide, elements))
        copied = self._copied(base, bias) if base.dtype in FOUR_BIT else []
        dense, dtype = self._dequantized(base, made)
        product = made("B A", wide)
        if out.product is None:
            out.product = len(out.events)
        if own != wide:
            product, before = made("B A", own), product
            out.free(before)
        scaled = made("scaled B A", own)
        summed = made("weight + B A", promote(dtype, own))
        out.free(scaled)
        self.load.keep(vector, layer, promote(dtype, own))
        out.free(*copied)
        if dense is not None:
            out.free(dense)
        out.free(product, summed, *floats)

    def _copied(self, base: ParameterSpec, bias: ParameterSpec | None) -> list[int]:
        """The copy of a 4-bit layer that the norm is taken of: its packed weight, its constants, its bias."""
        out, found = self.out, []
        out.about = (base.name, base.shape, base.dtype, " copy")
        found.append(out.alloc(-(-prod(matrix(base)) // 2)))
        table = self.load.parameter_table
        rows = {row.name.removeprefix(f"{base.name} "): row for row in table.constants(base)}
        for what in COPIED:
            if (row := rows.get(what)) is not None:
                out.about = (row.name, row.shape, row.dtype, " copy")
                found.append(out.alloc(row.size.evaluate(self.load.values) // row.count))
        if bias is not None:
            out.about = (bias.name, bias.shape, bias.dtype, " copy")
            found.append(out.alloc(self.load.elements(bias) * itemsize(bias.dtype)))
        return found

    def _dequantized(self, base: ParameterSpec, made: Callable[..., int]) -> tuple[int | None, str]:
        """The weight that is added to, and its dtype: made for a quantized base (bitsandbytes 0.50
        functional.py dequantize_4bit; _ops.py int8_vectorwise_dequant), else the base's own.
        """
        out = self.out
        if base.dtype == "int8":
            scaled = made("times its scales", "float32")
            dense = made("dequantized", "float32")
            out.free(scaled)
            return dense, "float32"
        if base.dtype not in FOUR_BIT:
            return None, base.dtype
        blocks = -(-prod(matrix(base)) // self.setup.quant_block)
        constants = [made("constants in fp32", "float32", blocks)] if self.setup.double_quant else []
        dense = made("dequantized", self.setup.weight_dtype)
        out.free(*constants)
        return dense, self.setup.weight_dtype


def _layers(
    table: ParameterTable,
) -> Iterator[tuple[str, tuple[Adapter, ParameterSpec, ParameterSpec | None]]]:
    """The vector's name of every DoRA layer -> its adapter, its base weight and that one's bias."""
    base = {stored.name: stored for stored in table.base}
    for adapter in table.adapters.values():
        for tensor in adapter.tensors:
            module, _, short = tensor.name.rpartition(".")
            if short == MAGNITUDE and f"{module}.weight" in base:
                yield tensor.name, (adapter, base[f"{module}.weight"], base.get(f"{module}.bias"))
