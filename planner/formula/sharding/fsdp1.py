"""One rank under FSDP1: which parameters lie in one flat tensor, what is kept of it, in which dtypes.

Sources: torch 2.14 distributed/fsdp/_flat_param.py (`_init_flat_param_and_metadata`: the parameters of a unit
in the order of its modules, with use_orig_params each at an address of 16 bytes; `_get_shard`: ceil(n / N) of
them, rank 0 always a full part), accelerate 1.15 accelerator.py `prepare_model` (float32 masters of every
trained flat tensor where mixed precision is on), peft 0.21 utils/other.py `fsdp_auto_wrap_policy` (a unit for
each trained module without children). Buffers, quantization constants and step counters are whole on every
rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.replay.load_peak import load_candidates
from memplan.planner.formula.resident.loading import load_rows
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.sharding.plan import Loading, ShardingPlan, Whole, nbytes
from memplan.planner.formula.symbolic.expr import Expr, as_expr, ceil_div, total
from memplan.planner.tables.components import Component
from memplan.planner.tables.dtypes import itemsize

ALIGNED = 16  # bytes: _flat_param.py _get_aligned_numel
FOUR_BIT = ("nf4", "fp4")
ROOT, LAYER = "root", "layer"


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """The flat parameter of one kind of unit. `elements`: unsharded, without what pads it to a multiple of N;
    `part`: what a rank keeps.
    """

    name: str
    members: tuple[ParameterSpec, ...]
    places: tuple[int, ...]  # the decoder layers that have one, () outside them
    kept: str
    computed: str
    elements: Expr
    part: Expr
    trained: bool
    pieces: tuple[ParameterSpec, ...]  # what the optimizer sees of the part, where it is trained

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.places) or 1

    def row(
        self, what: str, size: Expr, dtype: str, why: str, component: Component = "weights"
    ) -> SymbolicRow:
        """A row of so many elements for each of them."""
        whole = nbytes(size, dtype) * self.count
        return SymbolicRow(f"{self.name} {what}", (size,), dtype, self.count, whole, component, why)


class Fsdp1Plan(ShardingPlan):
    """A rank that keeps its part of every flat parameter, gradient and optimizer state."""

    def __init__(self, stored: ParameterTable, seen: ParameterTable) -> None:
        super().__init__(stored, seen)
        self.offloaded = self.setup.offload == "all"
        self.computed = {t.name: t.dtype for t in seen.all}

    # ---- units ---------------------------------------------------------------------------------------------

    def shared(self, stored: ParameterSpec) -> bool:
        """Whether a tensor is a parameter, which a flat one takes in; buffers are not."""
        return stored.logical

    def alone(self, stored: ParameterSpec) -> bool:
        """Whether a tensor is a unit of its own: an adapter's."""
        return stored.role == "adapter"

    @cached_property
    def flats(self) -> tuple[Flat, ...]:
        """Every kind of flat parameter: the root's, the layers', adapters'; layers of equal parameters are
        one kind.
        """
        root: list[ParameterSpec] = []
        layers: dict[int, list[ParameterSpec]] = {}
        alone: list[Flat] = []
        for tensor in self.stored.all:
            if not self.shared(tensor):
                continue
            places = tuple(self.each_layer(tensor))
            if self.alone(tensor):
                alone.append(self._flat(tensor.name, (tensor,), places))
            elif places:
                for place in places:
                    layers.setdefault(place, []).append(tensor)
            else:
                root.append(tensor)
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, members in sorted(layers.items()):
            alike.setdefault(tuple(id(t) for t in members), []).append(place)
        for members in layers.values():
            if any(".self_attn." in t.name for t in members):  # LlamaDecoderLayer: attention, MLP, then norms
                members.sort(key=lambda t: t.role == "norm" and ".self_attn." not in t.name)
        names = (LAYER, *(f"{LAYER} (kind {number})" for number in range(2, len(alike) + 1)))
        of_layers = [
            self._flat(name, tuple(layers[places[0]]), tuple(places))
            for name, places in zip(names, alike.values(), strict=False)
        ]
        return (*([self._flat(ROOT, tuple(root), ())] if root else ()), *of_layers, *alone)

    def _flat(self, name: str, members: tuple[ParameterSpec, ...], places: tuple[int, ...]) -> Flat:
        first = members[0]
        kept = self.dtype_of(first)
        computed = self.computed[first.name] if first.dtype not in FOUR_BIT else kept
        offsets, elements = self._offsets(members, computed)
        part = ceil_div(elements, self.ranks)
        trained = any(t.trained for t in members)
        flat = Flat(name, members, places, kept, computed, elements, part, trained, ())
        return replace(flat, pieces=tuple(self._pieces(flat, offsets)) if trained else ())

    def dtype_of(self, tensor: ParameterSpec) -> str:
        """The dtype that a tensor is kept in; of a packed weight its storage's."""
        return self.setup.quant_storage if tensor.dtype in FOUR_BIT else tensor.dtype

    def count_of(self, tensor: ParameterSpec) -> Expr:
        """Elements of a tensor, of a packed weight those of its storage."""
        if tensor.dtype in FOUR_BIT:
            return ceil_div(tensor.elements, 2 * itemsize(self.setup.quant_storage))
        return tensor.elements

    def _offsets(self, members: Sequence[ParameterSpec], computed: str) -> tuple[list[int], Expr]:
        """Where each tensor begins in the flat one, and how long that is; one tensor alone may have a rank's
        size.
        """
        if len(members) == 1:
            return [0], self.count_of(members[0])
        aligned = ALIGNED // itemsize(computed) if self.setup.use_orig_params else 1
        offsets, end = [], 0
        for tensor in members:
            end = -(-end // aligned) * aligned
            offsets.append(end)
            end += self.count_of(tensor).evaluate({"R": self.setup.rank})
        return offsets, as_expr(end)

    def _pieces(self, flat: Flat, offsets: Sequence[int]) -> Iterator[ParameterSpec]:
        """The parameters that the optimizer steps through: the flat one, or with use_orig_params what rank 0
        has of each tensor.
        """
        if not self.setup.use_orig_params or len(flat.members) == 1:
            role = flat.members[0].role if len(flat.members) == 1 else "flat"
            yield ParameterSpec(
                f"{flat.name} (part)", (flat.part,), flat.kept, flat.count, True, role, flat.places
            )
            return
        end = flat.part.evaluate({"R": self.setup.rank})
        for tensor, start in zip(flat.members, offsets, strict=True):
            held = min(end - start, self.count_of(tensor).evaluate({"R": self.setup.rank}))
            if held > 0 and tensor.trained:
                yield ParameterSpec(
                    f"{tensor.name} (part)", (held,), flat.kept, flat.count, True, tensor.role, flat.places
                )

    def flat_at(self, unit: str, place: int | None) -> Flat | None:
        """The flat parameter of the root or of a layer."""
        for flat in self.flats:
            if (unit == ROOT and flat.name == ROOT) or (
                unit == LAYER and place in flat.places and not self.alone(flat.members[0])
            ):
                return flat
        return None

    # ---- what is kept --------------------------------------------------------------------------------------

    def _kept(self) -> list[SymbolicRow]:
        """What stays of the weights: parts, and whole on every rank buffers and quantization constants."""
        why = "this rank's part of a flat parameter, {}"
        rows = (
            []
            if self.offloaded
            else [
                flat.row("(part)", flat.part, flat.kept, why.format("trained" if flat.trained else "frozen"))
                for flat in self.flats
            ]
        )
        return [*rows, *self._never_flat()]

    def _never_flat(self) -> list[SymbolicRow]:
        """Buffers and quantization constants."""
        flattened = {t.name for flat in self.flats for t in flat.members}
        return [row for row in self.stored.weight_rows() if row.name not in flattened]

    def _states(self) -> list[SymbolicRow]:
        return [row for piece in self.pieces() for row in self.stored.states_of(piece, paged=False)]

    def pieces(self) -> list[ParameterSpec]:
        """What the optimizer has on this rank, in the model's order."""
        return [piece for flat in self.flats for piece in flat.pieces]

    def stepped(self) -> Sequence[ParameterSpec]:
        """The parts that the optimizer updates on the GPU; none where they are offloaded."""
        return [] if self.offloaded else self.pieces()

    def resident(self) -> list[SymbolicRow]:
        """This rank's parts and their states, without what is offloaded."""
        return [*self._kept(), *(() if self.offloaded else self._states())]

    def host(self) -> list[SymbolicRow]:
        """What this rank keeps in host memory: paged states, and what offload_params moves there."""
        paged = [row for piece in self.pieces() for row in self.stored.states_of(piece, paged=True)]
        if not self.offloaded:
            return paged
        why = "this rank's part, on the host"
        parts = [flat.row("(part)", flat.part, flat.kept, why) for flat in self.flats]
        gradients = [
            flat.row("gradient", flat.part, flat.kept, why, "gradients")
            for flat in self.flats
            if flat.trained
        ]
        return [*paged, *parts, *self._states(), *gradients]

    def gathered(self) -> Iterator[Sequence[Whole]]:
        """One unit after another whole, in the dtype that it is kept in, the root's all the time."""
        root = [(f.name, (f.elements,), f.kept) for f in self.flats if f.name == ROOT]
        for flat in self.flats if self.ranks > 1 else ():
            for _ in flat.places or (() if flat.name == ROOT else (0,)):
                yield [*root, (flat.name, (flat.elements,), flat.kept)]

    # ---- the load ------------------------------------------------------------------------------------------

    def widened(self) -> list[Flat]:
        """The flat parameters that accelerate makes float32 after they were cut; with use_orig_params the
        narrow parts stay until the first forward.
        """
        if self.setup.trainable_dtype != "float32":
            return []
        return [flat for flat in self.flats if flat.trained and self.built(flat) != flat.kept]

    def built(self, flat: Flat) -> str:
        """The dtype that a flat parameter is cut in: the model's own, before masters are made of it."""
        if not flat.trained or flat.kept != "float32" or self.setup.trainable_dtype != "float32":
            return flat.kept
        if self.alone(flat.members[0]):
            return self.setup.adapter_dtype
        return self.setup.weight_dtype

    def whole(self, flat: Flat) -> Expr:
        """Bytes of a unit's tensors before they are flat."""
        dtype = self.built(flat)
        return total(nbytes(self.count_of(t), dtype) for t in flat.members)

    def loading(self) -> Loading:
        """Parts stay. As a unit is cut its tensors are there, their flat copy and the part; a quantized model
        is whole on the device until all is cut.
        """
        batch = load_rows(self.stored)[len(self.stored.weight_rows()) :]
        narrow = [
            flat.row("(part before it is widened)", flat.part, self.built(flat), "held by the parameters")
            for flat in (self.widened() if self.setup.use_orig_params else ())
        ]
        load = [*self._kept(), *narrow, *batch]
        units = [flat for flat in self.flats if not self.alone(flat.members[0])]
        cut = [[*self._before(flat), *self._cut(flat), self._tensors(flat)] for flat in units]
        if self.setup.quant_type != "none" and not self.setup.load_on_host:
            built = load_candidates(self.stored, self.each_layer)["load_peak"]
            first = min(units, key=lambda flat: flat.name == ROOT)
            cut += [*built, [*self.stored.weight_rows(), *self._cut(first)]]
        return {"load_peak": [load, *cut], "load": [load]}

    def _before(self, flat: Flat) -> list[SymbolicRow]:
        """What is there before the last unit of a kind is cut: of the root's all layers' parts."""
        kept = [f for f in self.flats if f.name != ROOT] if flat.name == ROOT else []
        rows = [f.row("(part)", f.part, self.built(f), "cut before") for f in kept]
        rows += self._never_flat()
        if flat.name != ROOT:
            others = max(flat.count - 1, 0)
            size = nbytes(flat.part, self.built(flat)) * others
            rows.append(
                SymbolicRow(
                    f"{flat.name} (part)", (flat.part,), self.built(flat), others, size, "weights", "cut"
                )
            )
        return rows if not self.offloaded else []

    def _tensors(self, flat: Flat) -> SymbolicRow:
        size = self.whole(flat)
        return SymbolicRow(
            f"{flat.name} before it is flat",
            (size,),
            "uint8",
            1,
            size,
            "temporaries",
            "brought from the host",
        )

    def _cut(self, flat: Flat) -> list[SymbolicRow]:
        dtype = self.built(flat)
        found = (("flat copy", flat.elements), ("part", flat.part))
        return [
            SymbolicRow(
                f"{flat.name} {what}", (size,), dtype, 1, nbytes(size, dtype), "temporaries", "cut from it"
            )
            for what, size in found
        ]
