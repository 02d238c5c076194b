"""How fast the allocator's replay is: `python -m pytest benchmarks/bench_allocator.py` (pytest-benchmark).

170,000 events, the length of one step of a 405B model with adapters at full depth, should take a fraction of
a second.
"""

import random

import pytest

from memplan.planner.allocator.replay import Event, replay, smallest_capacity

SIZES = (4096 * 4096 * 2, 4096 * 1376 * 2, 512, 65536, 4096 * 8 * 2)  # bytes, as in a transformer layer


def stream(events: int, resident: int = 200, per_layer: int = 85) -> list[Event]:
    """`resident` storages that stay, then layers of temporaries that live for about half of their layer."""
    rng = random.Random(0)
    result: list[Event] = [("alloc", key, rng.randrange(2**12, 2**27)) for key in range(resident)]
    key = resident
    for _ in range((events - resident) // (2 * per_layer)):
        live: list[int] = []
        for position in range(per_layer):
            result.append(("alloc", key, SIZES[position % len(SIZES)]))
            live.append(key)
            key += 1
            if position % 2:
                result.append(("free", live.pop(0), 0))
        result += [("free", leftover, 0) for leftover in live]
    return result


@pytest.mark.parametrize("mode", ["native", "expandable"])
def test_replay_of_170_000_events(benchmark, mode):
    events = stream(170_000)
    result = benchmark.pedantic(replay, args=(events,), kwargs={"mode": mode}, rounds=5, iterations=1)
    assert len(result.allocated) == len(events)


def test_smallest_capacity_of_17_000_events(benchmark):
    events = stream(17_000)
    smallest = benchmark.pedantic(smallest_capacity, args=(events,), rounds=3, iterations=1)
    assert replay(events, capacity=smallest).oom is None
