"""The smallest cap that a setup survives, found by measuring: the truth that "fits" is judged by.

A search proposes one cap after the other, the predicted one first; each is a case of its own, run under
`set_per_process_memory_fraction`. With an exact prediction two runs are enough: the predicted cap survives,
the next smaller one does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNIT = 2 * 2**20  # what the allocator asks the driver for is a multiple of it
PRECISION = 1024  # the search ends within this fraction of the boundary, or one unit
MOST_PROBES = 10


def unit_of(predicted: int) -> int:
    """The step between neighboring caps around a predicted boundary, in bytes: a multiple of 2 MiB, about a
    thousandth of it.
    """
    return max(1, predicted // PRECISION // UNIT) * UNIT


def predicted_cap(prediction: Mapping[str, Any] | None) -> int | None:
    """The smallest cap that a `memplan.prediction/1` expects to survive: its capacity without the CUDA
    context, which no cap counts.
    """
    if prediction is None or prediction.get("smallest_capacity_bytes") is None:
        return None
    context = (prediction.get("peak") or {}).get("context_bytes") or 0
    return -(-(int(prediction["smallest_capacity_bytes"]) - int(context)) // UNIT) * UNIT


def next_cap(predicted: int, survived: Mapping[int, bool], most: int) -> int | None:
    """The cap to measure next, given what earlier caps did; None once the boundary lies between two
    neighbors, or cannot be told.

    predicted: bytes, the first cap. survived: cap -> whether the run got through. most: the device's bytes.
    Distances from the predicted cap double until it is between a cap that survives and one that does not;
    then they are halved.
    """
    unit = unit_of(predicted)
    if len(survived) >= MOST_PROBES:
        return None
    good = min((cap for cap, through in survived.items() if through), default=None)
    failed = (cap for cap, through in survived.items() if not through)
    bad = max((cap for cap in failed if good is None or cap < good), default=None)
    if good is None and bad is None:
        return min(predicted, most)
    if good is not None and bad is not None:
        middle = bad + (good - bad) // 2 // UNIT * UNIT
        return middle if good - bad > unit and middle > bad else None
    return _further(good, bad, unit * 2 ** (len(survived) - 1), most)


def _further(good: int | None, bad: int | None, step: int, most: int) -> int | None:
    """A step below the cap that survives, or above the one that does not; None where there is no room."""
    if good is not None:
        return good - step if good > step else None
    assert bad is not None
    return min(bad + step, most) if bad < most else None
