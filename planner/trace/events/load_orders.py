"""The orders in which threads may load the same weights, each replayed: what identical runs differ by.

transformers 5 reads the checkpoint on min(4, CPUs) threads while the main thread converts or quantizes what
has arrived (core_model_loading.py convert_and_load_state_dict_in_model). How far they run ahead of it, and in
which order they end, is the machine's affair: another order cuts the cached segments into other blocks, of
which a remainder of up to 1 MiB each is never split off. So identical loads differ in what they hold, and the
training step finds other gaps to reuse. Weights that are quantized as they arrive are read one by one since
transformers 5.4 (its pull request 44576); before, and for every other load still, by the threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from memplan.planner.allocator.replay import Replay, RunningReplay
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.torch_versions import TORCH_VERSIONS
from memplan.planner.trace.events.log import ALLOC, FREE, READ, Event, Log

WORKERS = 4  # transformers 5.23 core_model_loading.py GLOBAL_WORKERS
AHEAD = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.0)
"""How often the threads' next tensor comes before the main thread's next quantization, from never behind to
all read first. Merging checkpoint tensors only launches copies, so without quantization the main thread keeps
up with the disk: 0.
"""
ORDERS = 12  # whose load is replayed; of these
STEPS = 3  # are replayed to the end: those that leave the least, the most, and between
FEW = 4  # orders of a load that quantizes nothing: only the ends of the threads differ, by little
LONGEST = 300_000  # events of these replays together, two at least: a second or two


@dataclass(frozen=True, slots=True)
class Band:
    """The least and the most bytes over the orders replayed, the predicted one included."""

    low: int
    high: int

    def to_document(self) -> dict[str, int]:
        """The band in bytes, as JSON has it."""
        return {"low_bytes": self.low, "high_bytes": self.high}


@dataclass(frozen=True, slots=True)
class Load:
    """The events of a pretrained load: `reads[i]` brings the checkpoint's tensor number i, `work[i]` is what
    the main thread does before it waits for the next.
    """

    begin: int
    end: int
    reads: tuple[Event, ...]
    work: tuple[tuple[Event, ...], ...]


def load_of(log: Log) -> Load | None:
    """The load that a log begins with; None where nothing was read from a checkpoint."""
    mark = log.marks[0]
    places = [index for index in range(mark.begin, mark.end) if _is_read(log, log.events[index])]
    if not places:
        return None
    borders = [*places[1:], mark.end]
    work = (tuple(log.events[place + 1 : border]) for place, border in zip(places, borders, strict=True))
    return Load(places[0], mark.end, tuple(log.events[place] for place in places), tuple(work))


def _is_read(log: Log, event: Event) -> bool:
    return event[0] == ALLOC and log.storages[event[1]].op == READ


def reordered(load: Load, ahead: float, random: Random) -> list[Event]:
    """The load's events in one order that the threads allow: tensor i + 1 may come before the work on tensor
    i, that work never before tensors 0 to i are there.
    """
    made: list[Event] = []
    started: list[int] = []
    count = len(load.reads)
    next_read = next_work = first_missing = 0
    done = [False] * count
    while next_work < count:
        while first_missing < count and done[first_missing]:
            first_missing += 1
        ready = next_work < first_missing
        if (started or next_read < count) and (not ready or random.random() < ahead):
            while len(started) < WORKERS and next_read < count:
                started.append(next_read)
                next_read += 1
            arrived = started.pop(random.randrange(len(started)))
            done[arrived] = True
            made.append(load.reads[arrived])
        else:
            made += load.work[next_work]
            next_work += 1
    return made


def orders(log: Log, setup: Setup, count: int) -> Iterator[list[Event]]:
    """The log's events up to the end of its load, in `count` other orders; none where no thread reads, or
    where order does not matter.
    """
    load = load_of(log) if setup.load == "pretrained" else None
    if load is None or not any(
        event[0] == FREE for work in load.work for event in work
    ):  # nothing that is freed leaves no gap
        return
    random = Random(0)
    for number in range(count):
        ahead = AHEAD[number % len(AHEAD)] if setup.quant_type != "none" else 0.0
        yield [
            *log.events[: load.begin],
            *reordered(load, ahead, random),
            *log.events[load.end : log.marks[0].end],
        ]


def bands(log: Log, setup: Setup, predicted: Replay) -> dict[str, Any] | None:
    """What the orders of a pretrained load leave open, as the prediction's document has it; None where every
    order ends alike.

    load: allocated bytes after loading; load_peak, step_peak: the largest while loading and after; reserved:
    the largest reserved after it.
    """
    first = min(mark.begin for mark in log.marks if mark.step >= 0)
    loads = []
    for order in orders(log, setup, ORDERS if setup.quant_type != "none" else FEW):
        course = RunningReplay(setup.allocator, ties=TORCH_VERSIONS[setup.torch].equal_blocks)
        run = course.run([*order, *log.events[len(order) : first]])
        loads.append((run.allocated[-1], max(run.allocated), course))
    if not loads:
        return None
    loads.sort(key=lambda found: found[:2])
    ends = [_after(predicted, first)]
    steps = max(2, min(STEPS, LONGEST // len(log.events)))
    for place in {round(place * (len(loads) - 1) / (steps - 1)) for place in range(steps)}:
        ends.append(_after(loads[place][2].run(log.events[first:]), first))
    made = {
        "load": _band([predicted.allocated[first - 1], *(found[0] for found in loads)]),
        "load_peak": _band([max(predicted.allocated[:first]), *(found[1] for found in loads)]),
        "step_peak": _band([end[0] for end in ends]),
        "reserved": _band([end[1] for end in ends]),
    }
    if all(band.low == band.high for band in made.values()):
        return None
    return {
        "why": _why(setup),
        "orders": len(loads) + 1,
        **{name: band.to_document() for name, band in made.items()},
    }


def _band(values: list[int]) -> Band:
    return Band(min(values), max(values))


def _after(run: Replay, first: int) -> tuple[int, int]:
    return max(run.allocated[first:]), max(run.reserved[first:])


def _why(setup: Setup) -> str:
    if setup.quant_type == "none":
        return "threads read the checkpoint, and the order in which they end differs from run to run"
    return (
        "transformers quantizes weights one by one from 5.4 on, as predicted; before, threads read ahead "
        "and identical runs differed"
    )
