"""How a rank under FSDP1 gets its parts: unit by unit, from the inside out, whole, flattened, then cut.

torch 2.14 distributed/fsdp: `_auto_wrap` comes to children first; `_move_module_to_device` brings a unit's
tensors, outer modules' first; `_sync_module_params_and_buffers` sends them in flat copies; the flat parameter
is made of them, the part is a copy of it, and the flat one and the tensors go. accelerate 1.15 accelerator.py
`prepare_model` then makes trained parts float32. The first forward makes and drops one whole buffer of each
unit and dtype (_flat_param.py init_flat_param_attributes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.loaded import loaded
from memplan.planner.formula.sharding.fsdp1 import LAYER, ROOT, Flat, Fsdp1Plan
from memplan.planner.formula.sharding.plan import Bytes
from memplan.planner.formula.symbolic.expr import Sized, as_expr
from memplan.planner.tables.dtypes import itemsize

GATHERS = "all-gather"  # the stream of gathers and of the views' backward (_runtime_utils.py _init_streams)
BROADCAST = 250 * 2**20  # bytes: distributed/utils.py PARAM_BROADCAST_BUCKET_SIZE
IN_FLIGHT = 2  # flat copies at once (csrc/distributed/c10d/reducer.cpp broadcast_coalesced)

Cut = tuple[Flat, int]
"""A flat parameter and its layer (-1 outside the layers)."""


class Fsdp1Rank(Fsdp1Plan):
    """A rank under FSDP1 with the events of its load."""

    def load(self, rank: int) -> Events:
        """What building the model and cutting it allocates and frees on rank 0, with adapters of a rank."""
        there = self.setup.quant_type != "none" and not self.setup.load_on_host
        out, held = Events(), dict[tuple[int, int], int]()
        if there:
            made = loaded(self.stored, rank, self.each_layer)
            out.events, out.sizes, out.product = (
                made.out.events.copy(),
                made.out.sizes.copy(),
                made.out.product,
            )
            held = made.held
        parts = []
        for cut in self._order():
            parts.append((cut, self._cut_events(out, cut, held, rank)))
            if not there:
                for nbytes in self.constants_of(cut[0].members, rank):
                    out.alloc(nbytes)
        if not there:
            for tensor in self.stored.all:
                if not self.shared(tensor):
                    for _ in range(tensor.count):
                        out.alloc(_bytes(tensor.elements, tensor.dtype, rank))
        widened = {id(flat) for flat in self.widened()}
        self.narrow = {
            name: [
                p for (flat, _), p in parts if id(flat) in widened and (flat.name == ROOT) == (name == ROOT)
            ]
            for name in (ROOT, LAYER)
        }
        for (flat, _), part in sorted(parts, key=lambda each: each[0][0].name != ROOT):
            if id(flat) in widened:
                out.alloc(_bytes(flat.part, flat.kept, rank))
                if not self.setup.use_orig_params:
                    out.free(part)
        return out

    def wrap(self, out: Events, rank: int) -> list[int]:
        """What the first forward makes and drops before it computes: a buffer of each unit. Narrow parts
        that a layer's parameters held go here, and not one by one as layers have run.
        """
        if self.setup.use_orig_params:
            out.free(*self.narrow[LAYER])
        for flat, _ in sorted(self._order(), key=lambda each: each[0].name != ROOT):
            mixed = flat.computed != flat.kept
            whole = flat.part * self.ranks
            if mixed:
                out.through(_bytes(flat.part, flat.computed, rank))
            out.through(_bytes(whole, flat.computed, rank))
            if mixed:
                out.through(_bytes(whole, flat.kept, rank))
        return []

    def races(self) -> bool:
        """What a unit lets go may be used again when the GPU has come there. With `limit_all_gathers` the
        host waits for the unit before the last one (fsdp/_limiter_utils.py _FreeEventQueue).
        """
        return True

    def regroup(
        self, out: Events, rank: int, wrapped: Sequence[int], gradients: Sequence[Bytes], *, late: bool
    ) -> int:
        """Before the second forward, what is reserved where the host is ahead: one more flat parameter and
        one more joined gradient of a layer than are there at once.
        """
        if not late:
            return 0
        layers = [flat for flat in self.flats if flat.places]
        layer = max(layers, key=lambda f: _bytes(f.part, f.computed, rank), default=None)
        there = [(flat, 1, 1) for flat in self.flats if flat.name == ROOT]
        if layer is not None:
            ahead = self.setup.backward_prefetch != "none"
            there.append((layer, 1 + ahead + 1, 2))
        made: list[int] = []
        for flat, gathered, joined in there:
            made += [out.alloc(_bytes(flat.part * self.ranks, flat.computed, rank)) for _ in range(gathered)]
            if flat.trained:
                made += [out.alloc(_bytes(flat.elements, flat.computed, rank)) for _ in range(joined)]
        out.streams.update(dict.fromkeys(made, GATHERS))
        out.free(*made)
        return 0

    def until_backward(self) -> Sequence[int]:
        """The root's narrow part, which its parameters hold until it has run."""
        return self.narrow[ROOT] if self.setup.use_orig_params else ()

    def _order(self) -> Iterator[Cut]:
        """Units from the inside out: each layer behind its adapters, then the root."""
        inside = [flat for flat in self.flats if self.alone(flat.members[0])]
        units = [flat for flat in self.flats if flat.places and not self.alone(flat.members[0])]
        for place in sorted({place for flat in units for place in flat.places}):
            yield from ((flat, place) for flat in (*inside, *units) if place in flat.places)
        yield from ((flat, -1) for flat in (*inside, *self.flats) if not flat.places)

    def _cut_events(self, out: Events, cut: Cut, held: dict[tuple[int, int], int], rank: int) -> int:
        """One unit's load; the id of its part."""
        flat, place = cut
        dtype = self.built(flat)
        wide = sorted(flat.members, key=lambda t: t.name.count("."))
        there = [held.get((id(t), place)) for t in wide]
        whole = [
            found if found is not None else out.alloc(_bytes(self.count_of(t), dtype, rank))
            for t, found in zip(wide, there, strict=True)
        ]
        if self.setup.loop.prepares:
            _broadcast(out, [_bytes(self.count_of(t), dtype, rank) for t in flat.members])
        joined = out.alloc(_bytes(flat.elements, dtype, rank))
        part = out.alloc(_bytes(flat.part, dtype, rank))
        out.free(joined)
        out.free(*reversed(whole))
        return part


def _broadcast(out: Events, tensors: Sequence[int]) -> None:
    """`broadcast_coalesced`: tensors in a row until they reach a limit, in a flat copy where they are
    several; two at once.
    """
    groups: list[list[int]] = [[]]
    for nbytes in tensors:
        groups[-1].append(nbytes)
        if sum(groups[-1]) >= BROADCAST:
            groups.append([])
    flats: list[int] = []
    for group in groups:
        if len(flats) == IN_FLIGHT:
            out.free(flats.pop(0))
        if len(group) > 1:  # one tensor alone is sent as it lies
            flats.append(out.alloc(sum(group)))
    out.free(*flats)


def _bytes(elements: Sized, dtype: str, rank: int) -> int:
    return as_expr(elements).evaluate({"R": rank}) * itemsize(dtype)
