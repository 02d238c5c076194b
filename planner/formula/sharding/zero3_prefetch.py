"""What ZeRO-3 has gathered at once: its coordinator's decisions over one step, module by module.

Written after deepspeed 0.19.8 runtime/zero/partitioned_param_coordinator.py (`fetch_sub_module`,
`release_sub_module`, `__params_to_release`) and partition_parameters.py (`AllGatherCoalescedHandle`): a
module's parameters are gathered before it runs, later ones ahead, up to `prefetch_bucket` more with every
module until `live_parameters` are there; one is kept after its module where it is used again within
`reuse_distance` elements. Several that are gathered together arrive in one flat buffer and are copied out of
it; the buffer goes when the last of them was waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Module = tuple["Parameter", ...]


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """A parameter that is not persistent: its elements."""

    elements: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Elements, from the ZeRO configuration."""

    prefetch: int
    live: int
    reuse: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """The most elements gathered at once in each pass, flat buffers and copies together; of an evaluation,
    whose forwards follow one another: what one of them keeps for the backward that does not come is there in
    the next (parameter_offload.py `_start_of_forward_hook` begins the trace anew and releases nothing).
    """

    forward: int
    backward: int
    evaluation: int


def fetched(blocks: Sequence[tuple[Sequence[Module], bool]], limits: Limits) -> Fetched:
    """`blocks`: runs of modules in forward order, and whether the backward recomputes them first (a
    checkpointed layer).
    """
    forward = [module for block, _ in blocks for module in block]
    backward = [
        module
        for block, recomputed in reversed(blocks)
        for module in (*(block if recomputed else ()), *reversed(block))
    ]
    trace, passed, state = [*forward, *backward], len(forward), _State()
    peaks = list(_walk(trace, limits, _State(), len(trace)))
    evaluated = [size for _ in range(2) for size in _walk(trace, limits, state, passed)]
    return Fetched(*(max(each, default=0) for each in (peaks[:passed], peaks[passed:], evaluated)))


def _walk(trace: list[Module], limits: Limits, state: _State, ends: int) -> Iterator[int]:
    """The most elements gathered while each of the trace's first `ends` modules runs."""
    before = [0]
    for module in trace:
        before.append(before[-1] + sum(p.elements for p in module))
    uses: dict[Parameter, list[int]] = {}
    for index in range(len(trace) - 1, -1, -1):
        for parameter in trace[index]:
            uses.setdefault(parameter, []).append(index)
    queue = [parameter for module in trace for parameter in module]
    ahead = 0  # how far the queue has been looked at
    passed = 0
    for index, module in enumerate(trace[:ends]):
        state.gather([p for p in module if not state.has(p)])
        most = state.elements()
        passed += len(module)
        ahead = max(ahead, passed)
        chosen: dict[Parameter, None] = {}
        room = min(limits.live - state.available(), limits.prefetch)
        size = 0
        while ahead < len(queue) and size < room:
            parameter = queue[ahead]
            ahead += 1
            if not state.has(parameter) and parameter not in chosen:
                chosen[parameter] = None
                size += parameter.elements
        state.gather(list(chosen))
        for parameter in module:
            state.wait(parameter)
        yield max(most, state.elements())
        for parameter in module:
            uses[parameter].pop()
            following = uses[parameter][-1] if uses[parameter] else None
            if following is None or before[following] - before[index + 1] >= limits.reuse:
                state.release(parameter)


class _State:
    """Which parameters are there, in flat buffers or on their own."""

    def __init__(self) -> None:
        self.waiting: dict[
            Parameter, list[Parameter]
        ] = {}  # the group that each was gathered with, until it is waited for
        self.copied: dict[Parameter, None] = {}
        self.flat = 0
        self.copies = 0

    def has(self, parameter: Parameter) -> bool:
        return parameter in self.waiting or parameter in self.copied

    def elements(self) -> int:
        return self.flat + self.copies

    def available(self) -> int:
        return self.copies + sum(p.elements for p in self.waiting if p not in self.copied)

    def gather(self, group: list[Parameter]) -> None:
        if len(group) == 1:  # no copy: the parameter is the buffer
            self._copy(group[0])
            return
        for parameter in group:
            self.waiting[parameter] = group
            self.flat += parameter.elements

    def wait(self, parameter: Parameter) -> None:
        """The first of a group that is waited for copies them all; the last lets the flat buffer go."""
        group = self.waiting.pop(parameter, None)
        if group is None:
            return
        for other in group:
            self._copy(other)
        if not any(other in self.waiting for other in group):
            self.flat -= sum(p.elements for p in group)

    def release(self, parameter: Parameter) -> None:
        if parameter in self.copied and parameter not in self.waiting:
            del self.copied[parameter]
            self.copies -= parameter.elements

    def _copy(self, parameter: Parameter) -> None:
        if parameter not in self.copied:
            self.copied[parameter] = None
            self.copies += parameter.elements
