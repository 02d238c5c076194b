"""Every door of the command line under hostile input, a seeded sample: `fuzzing.py` says what must hold, and
how to try more by hand.
"""

from __future__ import annotations

import pytest
from fuzzing import SERVERS, fuzz
from fuzzing_doors import DOORS
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = {"launch": 150, "campaign": 150, "options": 80, "diff": 60, "log": 40, "hub": 40, "ui": 100}
FEW = 20  # doors that predict: a tenth of a second each


@pytest.mark.parametrize("door", [*DOORS, *SERVERS])
def test_nothing_breaks_it(door: str) -> None:
    if door == "hub":
        pytest.importorskip("huggingface_hub")

    @settings(derandomize=True, max_examples=CASES.get(door, FEW), deadline=None, database=None)
    @given(st.integers(0, 2**31))
    def case(seed: int) -> None:
        assert fuzz(door, seed) == []

    case()
