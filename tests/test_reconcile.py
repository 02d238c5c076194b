"""Reconciliation: tiers and errors from hand-made records, and errors planted in a prediction by a seed,
which must be named.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Breakdown, ModelSummary, Peak, Prediction, Row
from memplan.planner.tables.components import COMPONENTS, STEP_MOMENTS
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.units import MIB
from memplan.profiler.record import MeasuredMoment, MeasuredPeak, Measurement
from memplan.validate.reconcile import Predicted, Reconciliation, reconcile
from memplan.validate.reference_rows import known_rows

MODELS = ("qwen2.5-0.5b", "llama-3.2-1b", "llama-2-7b")
SETUPS = (
    {"method": "full", "recipe": "raw", "sequence_length": 512},
    {"method": "lora", "sequence_length": 512},
    {"method": "qlora", "sequence_length": 1024},
    {
        "method": "lora",
        "recipe": "raw",
        "checkpointing": "non_reentrant",
        "micro_batch": 2,
        "sequence_length": 512,
    },
)
SMALLEST = 1 * MIB


def truth(model: str, setup: dict) -> tuple[Prediction, list[Row]]:
    spec = find(model).spec()
    resolved = resolve(setup)
    return plan(spec, resolved), known_rows(spec, resolved)


def as_measured(prediction: Prediction, **changes) -> Measurement:
    """The record that a run would leave if the prediction were true to the byte."""
    step = max((m for m in prediction.moments if m.moment in STEP_MOMENTS), key=lambda m: m.allocated_bytes)
    fields = dict(
        case="planted",
        model={"name": prediction.model.name, "config": {}},
        setup=prediction.setup,
        environment={"gpu": "test GPU", "versions": {}},
        outcome="ok",
        steps=3,
        peak=MeasuredPeak(step.moment, step.allocated_bytes, step.allocated_bytes, 0),
        step_peak=MeasuredPeak(step.moment, step.allocated_bytes, step.allocated_bytes, 0),
        moments=tuple(
            MeasuredMoment(m.moment, m.allocated_bytes, components={**m.components, "unattributed": 0})
            for m in prediction.moments
        ),
    )
    return Measurement(**{**fields, **changes})


def with_rows(prediction: Prediction, change) -> Prediction:
    """The prediction with `change(moment, row)` in place of every row: a row, None to drop it, or several."""
    moments = []
    for breakdown in prediction.moments:
        rows: list[Row] = []
        for row in breakdown.rows:
            kept = change(breakdown.moment, row)
            rows += kept if isinstance(kept, list) else [kept] if kept is not None else []
        moments.append(Breakdown(breakdown.moment, tuple(rows)))
    step = max((m for m in moments if m.moment in STEP_MOMENTS), key=lambda m: m.allocated_bytes)
    peak = Peak(step.moment, step.allocated_bytes, step.allocated_bytes, prediction.step_peak.context_bytes)
    return prediction.with_(moments=tuple(moments), step_peak=peak)


def is_row(row: Row, planted: Row) -> bool:
    return (row.name, row.component, row.dtype, row.shape) == (
        planted.name,
        planted.component,
        planted.dtype,
        planted.shape,
    )


def plant(prediction: Prediction, kind: str, rng: random.Random) -> tuple[Prediction, Row]:
    """The prediction as an engine with one error would make it, and the row that is wrong."""
    moments = [m.moment for m in prediction.moments]
    wanted = {"temporaries"} if kind == "kernel fact removed" else set(COMPONENTS)
    rows = {}
    for breakdown in prediction.moments:
        for row in breakdown.rows:
            if row.charged >= SMALLEST and row.component in wanted and breakdown.moment in STEP_MOMENTS:
                rows[row.name, row.component, row.dtype] = (breakdown.moment, row)
    at, row = rng.choice(list(rows.values()))
    if kind in ("row dropped", "kernel fact removed"):
        return with_rows(prediction, lambda m, r: None if is_row(r, row) else r), row
    if kind == "dtype doubled":
        wide = {"bfloat16": "float32", "nf4": "int8", "float32": "float64", "uint8": "int16"}.get(
            row.dtype, "float64"
        )
        return with_rows(
            prediction,
            lambda m, r: replace(r, dtype=wide, bytes=2 * r.bytes, block_bytes=None) if is_row(r, row) else r,
        ), row
    there = rng.choice([m for m in moments if m != at])
    moved = with_rows(prediction, lambda m, r: None if m == at and is_row(r, row) else r)
    extended = tuple(Breakdown(m.moment, (*m.rows, row)) if m.moment == there else m for m in moved.moments)
    return moved.with_(moments=extended), row


def names(reconciliation: Reconciliation, row: Row) -> bool:
    """Whether the first suspect is the row: by its name, or, where the prediction lacks it, by component,
    bytes and being missing.
    """
    if not reconciliation.suspects:
        return False
    first = reconciliation.suspects[0]
    by_shape = (
        first.component == row.component
        and first.bytes == pytest.approx(row.charged, rel=0.01)
        and first.change == "missing from the prediction"
    )
    return by_shape or any(
        row.name == name or row.name.endswith((f" {name}", f".{name}")) for name in first.rows
    )


KINDS = ("row dropped", "dtype doubled", "kernel fact removed", "wrong moment")


@pytest.fixture(scope="module")
def truths():
    return {(model, n): truth(model, setup) for model in MODELS for n, setup in enumerate(SETUPS)}


def test_planted_errors_are_named_in_nine_of_ten(truths):
    """120 errors drawn by a seed; the reconciliation sees only the broken prediction, the record, and
    shapes.
    """
    rng, missed, tried = random.Random(20261122), [], 0
    for _ in range(30):
        for kind in KINDS:
            prediction, references = truths[rng.choice(list(truths))]
            try:
                broken, row = plant(prediction, kind, rng)
            except IndexError:
                continue
            tried += 1
            found = reconcile(broken, as_measured(prediction), references)
            if not names(found, row):
                missed.append(
                    f"{kind}: {row.name} {row.shape} {row.dtype} ({row.component}); said "
                    f"{[str(s) for s in found.suspects[:1]]}"
                )
    assert tried >= 100
    assert len(missed) <= tried // 10, f"{len(missed)} of {tried} not named:\n" + "\n".join(missed)


def test_a_true_prediction_has_no_suspects_and_nothing_unexplained(truths):
    for prediction, references in truths.values():
        found = reconcile(prediction, as_measured(prediction), references)
        assert found.suspects == () and found.unexplained_bytes == 0
        assert found.error == 0.0


def test_what_no_row_explains_stays_unexplained(truths):
    prediction, references = truths["llama-2-7b", 1]
    real = as_measured(prediction)
    odd = 123_457_789
    moments = tuple(
        replace(m, allocated_bytes=m.allocated_bytes + odd, components=None) for m in real.moments
    )
    found = reconcile(
        prediction,
        real.with_(
            moments=moments,
            step_peak=replace(real.step_peak, allocated_bytes=real.step_peak.allocated_bytes + odd),
        ),
    )
    assert found.unexplained_bytes is not None and abs(found.unexplained_bytes) > 0
    assert found.tiers["allocated"].bytes == -odd


def hand_made(reserved: int = 100, smallest: int | None = None) -> Predicted:
    parts = {"weights": 60, "gradients": 0, "optimizer_states": 0, "activations": 30, "temporaries": 0}
    return Predicted(
        "trace",
        {"allocated": 90, "reserved": reserved, "context": 10},
        {"forward": parts},
        {"forward": ()},
        smallest,
    )


def record(outcome: str, cap: int | None = None, allocated: int = 80) -> Measurement:
    peak = MeasuredPeak("forward", allocated, 100, 10)
    return Measurement(
        "hand",
        {"name": "m"},
        resolve({}),
        {"gpu": "g", "versions": {}},
        outcome,
        1,
        cap_bytes=cap,
        peak=peak,
        step_peak=peak,
        moments=(MeasuredMoment("forward", allocated),),
    )


def test_errors_are_fractions_of_the_measured_number():
    found = reconcile(hand_made(), record("ok"))
    assert found.tiers["allocated"].error == pytest.approx(10 / 80)
    assert found.tiers["device"].predicted == 110 and found.tiers["device"].measured == 110
    assert any("no allocator history" in note for note in found.notes)


@pytest.mark.parametrize(
    "outcome, cap, reserved, smallest, verdict",
    [
        ("ok", 100, 100, None, "right"),
        ("oom", 100, 100, None, "false_fits"),
        ("ok", 99, 100, None, "false_no"),
        ("oom", 99, 100, None, "right"),
        ("ok", 95, 100, 100, "tight"),  # the smallest capacity, context included, is within the cap
        ("oom", 85, 100, 100, "right"),
        ("error", 100, 100, None, "unknown"),
        ("ok", None, 100, None, "unknown"),
    ],
)
def test_an_outcome_under_a_cap_is_the_truth_about_the_verdict(outcome, cap, reserved, smallest, verdict):
    assert reconcile(hand_made(reserved, smallest), record(outcome, cap)).verdict == verdict


def test_an_oom_says_nothing_about_sizes():
    found = reconcile(hand_made(), record("oom", 100))
    assert found.tiers == {} and found.moments == () and found.unexplained_bytes is None
    assert any("truth about the verdict" in note for note in found.notes)


def test_other_library_versions_are_noted():
    real = record("ok").with_(environment={"gpu": "g", "versions": {"pydantic": "0.0.1"}})
    assert any("pydantic 0.0.1 (here" in note for note in reconcile(hand_made(), real).notes)


def test_a_records_own_prediction_is_read_and_a_broken_one_refused():
    peak = Peak("forward", 90, 100, 10)
    prediction = Prediction(
        "trace",
        ModelSummary("m", "M", 1),
        resolve({}),
        1,
        1,
        1,
        peak,
        peak,
        (Breakdown("forward", (Row("a", (30,), "uint8", 1, 30, "activations", ""),)),),
    )
    read = Predicted.read(prediction.to_document(explain=True))
    assert (
        read.peaks == {"allocated": 90, "reserved": 100, "context": 10}
        and read.rows["forward"][0].bytes == 30
    )
    with pytest.raises(UsageError, match="step_peak"):
        Predicted.read({"engine": "trace"})


def test_an_aligned_event_of_the_gaps_size_is_named():
    """A kernel's workspace of 1 MiB that only the measurement has, and an unrelated one."""
    mib = 2**20
    parts = {
        "weights": 60 * mib,
        "gradients": 0,
        "optimizer_states": 0,
        "activations": 30 * mib,
        "temporaries": 0,
    }
    predicted = Predicted(
        "trace",
        {"allocated": 90 * mib, "reserved": 90 * mib, "context": 0},
        {"forward": parts},
        {"forward": ()},
        None,
    )
    event = {
        "only": "measured",
        "moment": "forward",
        "kind": "alloc",
        "bytes": mib,
        "count": 1,
        "where": "aten::mm",
    }
    other = {**event, "bytes": 5000, "where": "aten::add"}
    real = record("ok", allocated=91 * mib).with_(alignment={"unmatched": [other, event]})
    notes = reconcile(predicted, real).notes
    assert any("only measured: 1,048,576 B x1 at aten::mm" in note for note in notes) and not any(
        "aten::add" in note for note in notes
    )


def test_blocks_that_nothing_claims_stand_beside_temporaries():
    real = record("ok", allocated=90)
    moment = replace(
        real.moments[0], components={"weights": 60, "activations": 25, "temporaries": 0, "unattributed": 5}
    )
    parts = {"weights": 60, "gradients": 0, "optimizer_states": 0, "activations": 25, "temporaries": 5}
    predicted = Predicted(
        "trace", {"allocated": 90, "reserved": 90, "context": 0}, {"forward": parts}, {"forward": ()}, None
    )
    found = reconcile(predicted, real.with_(moments=(moment,)))
    assert {d.what: d.bytes for d in found.moments}["temporaries"] == 0


def planted_in_the_trace(setups, rounds: int) -> tuple[int, list[str]]:
    """How many errors a seed planted in the trace of a small model under those setups, and those that were
    not named.
    """
    pytest.importorskip("bitsandbytes")
    from memplan.planner.trace.engine import trace

    model = find("qwen2.5-0.5b")
    truths = [
        (trace(model.config, setup, model.name), known_rows(model.spec(), setup))
        for setup in map(resolve, setups)
    ]
    rng, missed, tried = random.Random(20261122), [], 0
    for _ in range(rounds):
        for kind in KINDS:
            prediction, references = rng.choice(truths)
            try:
                broken, row = plant(prediction, kind, rng)
            except IndexError:
                continue
            tried += 1
            if not names(reconcile(broken, as_measured(prediction), references), row):
                missed.append(f"{kind}: {row.name} {row.shape} {row.dtype}")
    return tried, missed


@pytest.mark.trace
@pytest.mark.parametrize(
    ("setups", "rounds", "least"),
    [
        pytest.param(SETUPS[1:2], 6, 20, id="sample"),
        pytest.param(SETUPS[:3], 25, 80, id="all", marks=pytest.mark.slow),
    ],
)
def test_errors_planted_in_the_trace_are_named_too(setups, rounds, least):
    """The same over the trace's rows, whose names are operations: what it lacks is named by component, size
    and being missing.
    """
    tried, missed = planted_in_the_trace(setups, rounds)
    assert tried >= least
    assert len(missed) <= tried // 10, f"{len(missed)} of {tried} not named:\n" + "\n".join(missed)
