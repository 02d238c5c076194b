"""One model of every family under every kind of method: rows that add up and say why, or one sentence with
the next move.
"""

from __future__ import annotations

import pytest

import memplan
from memplan.planner.inputs.models import find, index
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS

# where the formula has no family, plan traces by itself: tests/test_compiled.py
FAMILIES = {find(name).config["model_type"]: name for name in sorted(index(), reverse=True)}
SAMPLE = ("full", "qlora", "inference")


def check(model: str, method: str, **fields: object) -> None:
    try:
        prediction = memplan.plan(model, method=method, engine="formula", sequence_length=512, **fields)
    except UsageError as error:
        moves = ("--engine trace", "--task seq2seq", "--targets", "--no-checkpointing", "take another method")
        assert any(move in str(error) for move in moves), "a refusal names the next move"
        return
    for moment in prediction.moments:
        assert all(row.bytes > 0 and row.why and row.count >= 1 for row in moment.rows)
        assert sum(moment.components.values()) == moment.allocated_bytes
    assert prediction.peak.allocated_bytes == max(moment.allocated_bytes for moment in prediction.moments)
    assert prediction.peak.allocated_bytes >= prediction.step_peak.allocated_bytes > 0
    assert (prediction.trainable_parameters == 0) == (METHODS[method].trains == "nothing")


@pytest.mark.parametrize("method", SAMPLE)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, method: str):
    check(FAMILIES[family], method)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_method_and_checkpointing(family: str, method: str, checkpointing: str):
    check(FAMILIES[family], method, checkpointing="none" if method == "inference" else checkpointing)
