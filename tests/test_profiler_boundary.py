"""The search for the smallest cap that a setup survives: it ends at the truth, wherever the prediction
lies.
"""

from __future__ import annotations

import pytest

from memplan.profiler.oom_threshold import next_cap, predicted_cap, unit_of

MIB = 2**20


@pytest.mark.parametrize("off", [0, 1, -1, 3, -3, 20, -20, 400])
@pytest.mark.parametrize("predicted", [300 * MIB, 12_000 * MIB])
def test_a_search_ends_at_the_boundary_and_takes_two_runs_where_the_prediction_is_exact(
    predicted: int, off: int
) -> None:
    unit = unit_of(predicted)
    truth = max(2 * MIB, predicted + off * unit)
    survived: dict[int, bool] = {}
    while (cap := next_cap(predicted, survived, 2**40)) is not None:
        assert cap > 0
        assert cap % (2 * MIB) == 0
        assert cap not in survived
        survived[cap] = cap >= truth
    best = min(cap for cap, through in survived.items() if through)
    worst = max(cap for cap, through in survived.items() if not through)
    assert best - worst <= unit or len(survived) == 10
    assert worst < truth <= best
    if off == 0:
        assert len(survived) == 2


def test_a_search_stops_at_the_cards_end_and_without_a_prediction() -> None:
    assert next_cap(100 * MIB, {100 * MIB: False}, 100 * MIB) is None
    assert next_cap(100 * MIB, {}, 64 * MIB) == 64 * MIB
    assert predicted_cap(None) is None
    assert predicted_cap({"smallest_capacity_bytes": None}) is None
    assert (
        predicted_cap({"smallest_capacity_bytes": 10 * MIB + 1, "peak": {"context_bytes": 5 * MIB}})
        == 6 * MIB
    )
