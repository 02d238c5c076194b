"""How a rank under FSDP2 gets its parts: unit by unit, whole on the device, then cut.

torch 2.14 distributed/fsdp/_fully_shard: `_move_states_to_device` brings all tensors of a unit, `FSDPParam`
makes each one's part, and the whole ones go with the unit's `fully_shard`. A quantized model is there already
(accelerate 1.15 utils/fsdp_utils.py fsdp2_prepare_model holds it in a state_dict until all is cut).
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.loaded import loaded
from memplan.planner.formula.replay.orders import Each, in_order
from memplan.planner.formula.resident.parameter_spec import packed_bytes
from memplan.planner.formula.sharding.fsdp import EMBEDDING, LAYER, ROOT, TAIL, FsdpPlan

Unit = list[Each]


class FsdpRank(FsdpPlan):
    """A rank under FSDP2 with the events of its load."""

    def load(self, rank: int) -> Events:
        """What building the model and cutting it allocates and frees on rank 0, with adapters of a rank."""
        setup = self.setup
        whole = setup.quant_type != "none" and not setup.load_on_host
        return _cut_there(self, rank) if whole else _brought(self, rank)


def _brought(plan: FsdpPlan, rank: int) -> Events:
    """Each unit comes from the host and is cut."""
    out = Events()
    last: list[int] = []
    for unit in _units(plan):
        whole = [(out.alloc(_bytes(each, rank)), plan.outlasts(each[0])) for each in unit]
        for nbytes in plan.constants_of((stored for stored, _ in unit), rank):
            out.alloc(nbytes)
        for each in unit:
            _cut(plan, out, each, rank)
        out.free(*(each for each, outlasts in whole if not outlasts))
        last += [each for each, outlasts in whole if outlasts]
    out.free(*last)
    return out


def _cut_there(plan: FsdpPlan, rank: int) -> Events:
    """The whole model is on the device before it is cut."""
    made = loaded(plan.stored, rank, plan.each_layer)
    out, there = Events(), made.held
    out.events, out.sizes, out.product = made.out.events.copy(), made.out.sizes.copy(), made.out.product
    kept: list[int] = []
    for unit in _units(plan):
        shared = [each for each in unit if plan.shared(each[0])]
        for each in shared:
            _cut(plan, out, each, rank)
        kept += [there[id(stored), layer] for stored, layer in shared]
        if not plan.setup.loop.prepares:
            out.free(*kept)
            kept = []
    out.free(*kept)
    return out


def _units(plan: FsdpPlan) -> Iterator[Unit]:
    """The tensors of each unit, in the order in which units are cut."""
    every = in_order([(t, plan.each_layer(t)) for t in plan.stored.all])
    layers: dict[int, Unit] = {}
    for each in every:
        if plan.unit(each[0]) == LAYER:
            layers.setdefault(each[1], []).append(each)
    yield from (layers[number] for number in sorted(layers))
    for name in (EMBEDDING, TAIL, ROOT):
        if unit := [each for each in every if plan.unit(each[0]) == name]:
            yield unit


def _cut(plan: FsdpPlan, out: Events, each: Each, rank: int) -> None:
    """This rank's part of a tensor; a buffer stays whole."""
    stored, layer = each
    part = plan.shard(stored)
    out.alloc(_bytes((part, layer), rank))


def _bytes(each: Each, rank: int) -> int:
    return packed_bytes(each[0].elements, each[0].dtype).evaluate({"R": rank})
