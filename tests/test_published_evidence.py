"""What published runs say of a prediction: which are like it, their errors by quantity, the nearest one, and
the margin that they give a verdict.
"""

from __future__ import annotations

import json
import statistics

import pytest

import memplan
from memplan.cli.main import run
from memplan.planner.answers.verdict import MARGIN, margin, margin_of, need_of
from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.accuracy import Accuracy
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.reserved_errors import reserved_errors
from memplan.render.sentences import accuracy
from memplan.validate.likeness import alike, differing, traits
from memplan.validate.published_evidence import checked, error_of, evidence, percent, reserved_rows
from memplan.validate.scored_runs import EngineScore, ScoredRun, shipped

QLORA = {"method": "qlora"}
HERE = {"method": "lora", "gpu": "a100-80gb", "checkpointing": "non_reentrant"}


@pytest.mark.parametrize(
    "other, names",
    [
        ({}, ()),
        ({"rank": 64, "micro_batch": 8, "sequence_length": 512, "checkpointing": "reentrant"}, ()),
        ({"attention": "flash_attention_2"}, ()),
        ({"gpu": None}, ()),
        ({"method": "rslora"}, ()),
        ({"gpu": "h100-80gb"}, ("generation",)),
        ({"autocast": "none", "outputs_fp32": False}, ("precision",)),
        ({"weight_dtype": "float32"}, ("precision",)),
        ({"recipe": "raw", "autocast": "bfloat16"}, ("loop",)),
        ({"recipe": "raw"}, ("precision", "loop")),
        ({"method": "dora"}, ("method",)),
        ({"method": "qlora"}, ("method",)),
        ({"quant_type": "int8"}, ("method",)),
        ({"checkpointing": "none"}, ("checkpointing",)),
        ({"attention": "eager"}, ("attention",)),
        ({"gpus": 2, "parallel": "ddp"}, ("strategy",)),
    ],
)
def test_what_makes_one_run_like_another(other, names):
    one, two = traits(resolve(HERE)), traits(resolve({**HERE, **other}))
    assert differing(one, two) == names
    assert alike(one, two) == (len(names) == 0 or names in (("generation",), ("precision",), ("loop",)))


def test_a_prediction_cites_the_runs_that_are_like_it_and_no_other():
    found = memplan.plan("llama-7b", **QLORA)
    own = traits(found.setup)
    like = [run for run in shipped() if alike(own, run.traits) and run.engines["formula"].best]
    counted = [run for run in like if run.counted]
    said = found.accuracy.published
    assert said is not None and counted and said.runs == len(counted) == found.accuracy.runs
    assert said.other_libraries == len(like) - len(counted)
    for quantity, error in said.errors.items():
        errors = [abs(e) for run in counted if (e := run.error("formula", quantity)) is not None]
        assert (error.runs, error.median, error.worst) == (
            len(errors),
            pytest.approx(statistics.median(errors)),
            max(errors),
        )
    assert found.accuracy.median_error == said.errors["allocated"].median
    assert said.nearest in {run.id for run in counted} and said.nearest_differs == ()


def scored(name: str, error: float, counted: bool = True, **fields: object) -> ScoredRun:
    """A run of 10 GiB whose formula was off by `error` in every quantity."""
    sizes = dict.fromkeys(("allocated", "reserved", "device"), 10 * 2**30)
    off = {quantity: round(size * (1 + error)) for quantity, size in sizes.items()}
    setup = resolve({**HERE, **fields})
    score = EngineScore("key", off)
    return ScoredRun(
        name, "a100-80gb", 1, traits(setup), 7 * 10**9, sizes, counted, False, (), {"formula": score}, sizes
    )


def test_runs_whose_libraries_did_otherwise_and_dry_runs_stand_apart():
    prediction = plan(find("llama-7b").spec(), resolve(HERE))
    runs = [
        scored("a", 0.01),
        scored("b", -0.03),
        scored("other library", 0.5, counted=False),
        scored("other method", 0.4, method="full"),
        scored("other GPU", 0.02, gpu="h100-80gb"),
    ]
    found = evidence(prediction, (), runs)
    assert found.published is not None
    assert (found.runs, found.published.other_libraries, found.published.dry_runs) == (3, 1, 4)
    assert found.median_error == pytest.approx(0.02) and found.worst_error == pytest.approx(0.03)
    assert found.published.dry_run_errors["reserved"].worst == pytest.approx(0.5)
    assert found.margin == 0.0, "published runs widen a verdict by their class, not twice"
    assert checked(found) == "3 published runs like this (A100): reserved median 2.0 %, worst 3.0 %"
    assert found.evidence.startswith(
        "3 published runs like this (A100): allocated median 2.0 %, worst 3.0 %; "
    )
    assert (
        "1 more whose libraries did otherwise are not counted; apart from them 4 dry runs: " in found.evidence
    )


def test_where_none_is_like_it_the_nearest_is_named_with_what_differs():
    prediction = plan(find("llama-7b").spec(), resolve(HERE))
    found = evidence(
        prediction, (), [scored("far", 0.4, method="full"), scored("off", 0.1, checkpointing="none")]
    )
    assert found.median_error is None and found.runs == 0
    assert checked(found) == "no published run is like this one; nearest: far (another method)"
    assert accuracy(prediction.with_(accuracy=found)).startswith("formula engine: no published run is like")
    assert checked(evidence(prediction, (), [])) == "no published run is like this one"


def test_a_cpu_has_no_published_run():
    prediction = plan(find("llama-7b").spec(), resolve({**HERE, "gpu": None, "device": "cpu"}))
    assert evidence(prediction, (), [scored("a", 0.01)]).published is None


def test_the_document_has_every_quantity(capsys):
    assert run(["llama-7b", "--method", "qlora", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["accuracy"]
    assert said["published"]["runs"] == said["runs"] > 0 and said["nearest_run"]
    assert {"allocated", "device"} <= set(said["published"]["errors"])
    assert set(said["published"]["errors"]["device"]) == {"runs", "median_error", "p95_error", "worst_error"}


def test_the_same_words_from_ask(capsys):
    assert run(["ask", "llama-7b QLoRA on rtx-4090?", "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert asked["accuracy"]["published"]["runs"] >= 0


def test_p95_of_reserved_by_class_widens_the_verdict():
    table = reserved_errors()
    row = table["formula", "lora on a 4-bit base", "on"]
    assert row.runs >= 18 and row.p95 > MARGIN["formula"]
    prediction = memplan.plan("llama-7b", **QLORA)
    assert margin(prediction) == margin_of("formula", prediction.setup) == row.p95
    gpu = find_gpu("a100-80gb")
    need = need_of(prediction)
    assert need.high_bytes(gpu) == need.device_bytes(gpu) + round(need.reserved * row.p95)
    assert margin_of("formula", resolve({"method": "adalora"})) == MARGIN["formula"], "none was published"
    assert margin_of("trace", resolve({"method": "lora"})) == 0.0


def test_the_margin_is_a_share_of_what_is_predicted():
    """A run that reserved 10 where 8 was predicted needs 25 % more than predicted, though the error is 20
    %.
    """
    (row,) = reserved_rows([scored("low", -0.2)])
    assert row["p95"] == pytest.approx(0.25) and row["runs"] == 1
    assert reserved_rows([scored("not counted", -0.2, counted=False)]) == []


def test_adapters_under_the_trainers_fsdp1_never_fit():
    """Published runs of them needed up to a quarter more than is predicted, and nobody knows why; of full
    fine-tuning and of plain loops they did not.
    """
    shared = {"gpu": "a100-80gb", "gpus": 2, "parallel": "fsdp"}
    older = memplan.plan("llama-7b", **shared, method="lora", fsdp_version=1)
    assert older.gpus[0].verdict is None and any("FSDP1" in text for text in older.not_modelled)
    assert memplan.plan("llama-7b", **shared, method="lora").gpus[0].verdict == "fits"
    for other in ({"method": "full"}, {"method": "lora", "recipe": "raw"}):
        assert memplan.plan("llama-7b", **shared, **other, fsdp_version=1).gpus[0].verdict == "fits"


def test_errors_by_hand():
    found = error_of([0.01, -0.03, None, 0.02, 0.0])
    assert found is not None
    assert (found.runs, found.median, found.p95, found.worst) == (4, pytest.approx(0.015), 0.03, 0.03)
    assert error_of([None]) is None
    assert [percent(share) for share in (0.0, 0.0004, -0.02, 0.1)] == ["0.00 %", "0.04 %", "2.0 %", "10.0 %"]


def test_accuracy_without_evidence_is_as_before():
    assert checked(Accuracy()) == "no recorded run of this engine"
