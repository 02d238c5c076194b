"""One rank under FSDP2: which modules are units, what is kept of each tensor, in which dtypes.

Sources: torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param.py (`_init_sharded_param`: dim 0 in chunks of
ceil(d / N), rank 0 always a whole one), accelerate 1.15 utils/fsdp_utils.py `fsdp2_prepare_model` (units,
float32 masters, 4-bit weights). Buffers, quantization constants and step counters are whole on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memplan.planner.formula.parameters import B, ParameterTable
from memplan.planner.formula.replay.load_peak import load_candidates
from memplan.planner.formula.resident.loading import batch_shapes, load_rows
from memplan.planner.formula.resident.parameter_spec import ParameterSpec, packed_bytes
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.sharding.plan import Loading, ShardingPlan, Whole, part
from memplan.planner.formula.symbolic.expr import Expr, as_expr, ceil_div, product
from memplan.planner.tables.dtypes import DTYPE_BITS, itemsize
from memplan.planner.tables.methods import METHODS

LAYER, EMBEDDING, TAIL, ROOT = "layer", "embedding", "tail", "root"
FOUR_BIT = ("nf4", "fp4")


@dataclass(frozen=True, slots=True)
class Member:
    """One parameter of a unit: what rank 0 keeps, the dtype it computes in, its elements gathered (padded to
    a multiple of N).
    """

    name: str
    kept: ParameterSpec
    computed: str
    gathered: Expr
    trained: bool

    @property
    def part(self) -> Expr:
        """Elements that this rank keeps."""
        return product(self.kept.shape)


class FsdpPlan(ShardingPlan):
    """A rank that keeps its part of every parameter, gradient and optimizer state, and gathers one unit after
    the other to compute.
    """

    def __init__(self, stored: ParameterTable, seen: ParameterTable) -> None:
        super().__init__(stored, seen)
        self.offloaded = self.setup.offload == "all"
        self.computed = {t.name: t.dtype for t in seen.all}

    # ---- what is kept --------------------------------------------------------------------------------------

    def shared(self, stored: ParameterSpec) -> bool:
        """Whether ranks share a tensor: not buffers, and not 4-bit weights that are stored as uint8, which
        accelerate leaves out.
        """
        return stored.role != "buffer" and not (
            stored.dtype in FOUR_BIT and self.setup.quant_storage == "uint8"
        )

    def shard(self, stored: ParameterSpec) -> ParameterSpec:
        """What rank 0 keeps of a tensor: ceil(d / N) of dimension 0. A packed 4-bit weight is one column of
        its storage dtype.
        """
        if not self.shared(stored):
            return stored
        if stored.dtype in FOUR_BIT:
            packed = ceil_div(stored.elements, 2 * itemsize(self.setup.quant_storage))
            return replace(stored, shape=(part(packed, self.ranks), 1), dtype=self.setup.quant_storage)
        return replace(stored, shape=(part(stored.shape[0], self.ranks), *stored.shape[1:]))

    def _weights(self) -> list[SymbolicRow]:
        """Every parameter as this rank keeps it: shards, and whole what is not shared."""
        left, rows = list(self.stored.all), []
        for row in (
            self.stored.weight_rows()
        ):  # each tensor, then its quantization constants: attributes, which fully_shard does not see
            one = left.pop(0) if left and left[0].name == row.name else None
            rows.append(self._part_row(one, row) if one is not None and self.shared(one) else row)
        return rows

    def _part_row(self, tensor: ParameterSpec, row: SymbolicRow) -> SymbolicRow:
        kept = self.shard(tensor)
        size = product((*kept.shape, itemsize(kept.dtype), kept.count))
        return SymbolicRow(
            row.name,
            kept.shape,
            kept.dtype,
            kept.count,
            size,
            "weights",
            f"this rank's part of dimension 0, {row.why}",
        )

    def _states(self) -> list[SymbolicRow]:
        return [row for tensor in self.parts() for row in self.stored.states_of(tensor, paged=False)]

    def parts(self) -> list[ParameterSpec]:
        """What this rank keeps of each trained tensor."""
        return [self.shard(tensor) for tensor in self.stored.trained]

    def stepped(self) -> Sequence[ParameterSpec]:
        """The shards that the optimizer updates on the GPU; none where they are offloaded."""
        return [] if self.offloaded else self.parts()

    def resident(self) -> list[SymbolicRow]:
        """This rank's shards and their states, without what is offloaded."""
        rows = [*self._weights(), *self._states()]
        return [row for row in rows if not self._on_host(row)]

    def _on_host(self, row: SymbolicRow) -> bool:
        """CPUOffloadPolicy keeps shards, their gradients and their states on the host (torch 2.13
        _fully_shard/_fsdp_api.py).
        """
        return self.offloaded and (
            row.component == "optimizer_states" or row.why.startswith("this rank's part")
        )

    def gathered(self) -> Iterator[Sequence[Whole]]:
        """One parameter after another, in the dtype that it is kept in."""
        for each in self.stored.all if self.ranks > 1 else ():
            if not each.logical:
                continue
            packed = DTYPE_BITS[each.dtype] < 8
            shape = (packed_bytes(each.elements, each.dtype),) if packed else each.shape
            yield [(each.name, shape, "uint8" if packed else each.dtype)]

    def host(self) -> list[SymbolicRow]:
        """What this rank keeps in host memory: paged states, and what CPUOffloadPolicy moves there."""
        paged = [row for tensor in self.parts() for row in self.stored.states_of(tensor, paged=True)]
        if not self.offloaded:
            return paged
        kept = [row for row in (*self._weights(), *self._states()) if self._on_host(row)]
        return [*paged, *kept, *(gradient_row(tensor) for tensor in self.parts())]

    def loading(self) -> Loading:
        """Shards stay. While a unit is cut it is whole on the device; a quantized model is whole there on
        every rank until all is cut, also with cpu_ram_efficient_loading, which neither library heeds then
        (transformers 5.23 quantizer_bnb_4bit.py `update_device_map`); `load_on_host` is a loader that does.
        """
        batch = load_rows(self.stored)[len(self.stored.weight_rows()) :]
        assert len(batch) == len(batch_shapes(self.setup, B))
        kept = [row for row in self._weights() if not self._on_host(row)]
        load = [*kept, *batch]
        if self.setup.quant_type != "none" and not self.setup.load_on_host:
            cut = [*self.stored.weight_rows(), *self._cut()]
            built = load_candidates(self.stored, self.each_layer)["load_peak"]
            return {"load_peak": [*built, cut, load], "load": [load]}
        return {"load_peak": [load, [*kept, self._whole_unit()]], "load": [load]}

    def _cut(self) -> list[SymbolicRow]:
        """The parts that exist beside the whole model: all of them where accelerate cuts it, since its
        state_dict holds each whole tensor until the last unit is wrapped (fsdp2_prepare_model `original_sd`);
        a layer's where a plain loop does; offloaded, the largest.
        """
        parts = [tensor for tensor in self.stored.all if self.shared(tensor)]
        if self.offloaded:
            parts = [
                replace(
                    max(parts, key=lambda t: t.elements.evaluate({"R": self.setup.rank})), layers=(), count=1
                )
            ]
        elif not self.setup.loop.prepares:
            parts = [replace(tensor, layers=(), count=1) for tensor in parts if 0 in self.layers(tensor)]
        kept = [(tensor.name, self.shard(tensor)) for tensor in parts]
        return [
            SymbolicRow(
                f"{name} (this rank's part)",
                t.shape,
                t.dtype,
                t.count,
                product((*t.shape, itemsize(t.dtype), t.count)),
                "temporaries",
                "cut from the whole tensor, which is still there",
            )
            for name, t in kept
        ]

    def _whole_unit(self) -> SymbolicRow:
        """The largest unit as it is before it is cut, and what outlasts that."""
        sizes: dict[tuple[str, int | None], int] = {}
        for tensor in self.stored.all:
            for place in self.layers(tensor) or (None,):
                key = ("embedding and head", None) if self.outlasts(tensor) else (self.unit(tensor), place)
                size = packed_bytes(tensor.elements, tensor.dtype).evaluate({"R": self.setup.rank})
                sizes[key] = sizes.get(key, 0) + size
        (unit, _), size = max(sizes.items(), key=lambda item: item[1])
        return SymbolicRow(
            f"{unit} before it is cut",
            (size,),
            "uint8",
            1,
            as_expr(size),
            "temporaries",
            "fully_shard moves one module to the device, then keeps a part",
        )

    # ---- units ---------------------------------------------------------------------------------------------

    def unit(self, tensor: ParameterSpec) -> str:
        """The unit that a tensor belongs to. A plain loop wraps layers and the model; accelerate also
        embedding, final norm and head.
        """
        if self.layers(tensor):
            return LAYER
        name, spec = tensor.name, self.spec
        if not self.setup.loop.prepares:
            return ROOT
        if name.startswith(f"{spec.embedding_name}."):
            return TAIL if spec.tied else EMBEDDING
        if name.startswith(f"{spec.head_name}."):
            return TAIL
        return (
            TAIL
            if spec.final_norm is not None
            and name.startswith(f"{spec.final_norm.name}.")
            and self._finds_norm()
            else ROOT
        )

    def _finds_norm(self) -> bool:
        """Whether accelerate's `_find_final_norm` finds it: only a direct child of the base model, and not
        behind PEFT's wrapper.
        """
        norm = self.spec.final_norm
        return (
            norm is not None and norm.name.count(".") == 1 and METHODS[self.setup.method].trains != "adapter"
        )

    def outlasts(self, tensor: ParameterSpec) -> bool:
        """Whether a whole tensor stays until all units are cut: accelerate's variables `input_weight` and
        `output_weight` hold the embedding's and the head's.
        """
        ends = (f"{self.spec.embedding_name}.weight", f"{self.spec.head_name}.weight")
        return self.setup.loop.prepares and tensor.name in ends

    def members(self, unit: str, place: int | None) -> Iterator[Member]:
        """The shared tensors of one unit."""
        for tensor in self.stored.all:
            if (
                self.shared(tensor)
                and self.unit(tensor) == unit
                and (place is None or place in self.layers(tensor))
            ):
                kept = self.shard(tensor)
                computed = kept.dtype if tensor.dtype in FOUR_BIT else self.computed[tensor.name]
                yield Member(tensor.name, kept, computed, product(kept.shape) * self.ranks, tensor.trained)


def gradient_row(kept: ParameterSpec) -> SymbolicRow:
    """The row of a kept shard's gradient, bytes on this rank."""
    size = product((*kept.shape, itemsize(kept.dtype), kept.count))
    return SymbolicRow(
        f"{kept.name} gradient", kept.shape, kept.dtype, kept.count, size, "gradients", "this rank's part"
    )
