"""Published runs: enough of them, complete, legal, marked by their versions; what ships of their scores is
not stale, and outcomes are judged without a false fits.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from memplan.cli.main import run
from memplan.planner.inputs.models import find
from memplan.planner.tables import reserved_errors
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.progress import listening
from memplan.render.published import TITLE, shipped_section, tables
from memplan.validate import published_outcomes, scored_runs
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.library_differences import DIFFERENCES
from memplan.validate.published import RUNS, published_runs, read_runs, times
from memplan.validate.published_evidence import reserved_rows
from memplan.validate.published_outcomes import OUTCOMES, outcomes, read_outcomes
from memplan.validate.published_scores import by_engine, key_of, scored, update, write

ROOT = Path(__file__).parent.parent
STALE = "run: memplan validate --published --update"
EXPRESSED = [run for run in published_runs() if run.setup is not None]
SCORED = {run.id: run for run in scored_runs.shipped()}
AGAIN = [
    "peft-full",
    "fitcheck-tinyllama-1.1b-lora-eager-b2-s512",
    "fitcheck-smollm2-1.7b-qlora-sdpa-b4-s1024",
    "fms-main-mistral-7b-v0.1-lora-none-g1-b4",
    "fms-main-llama-2-70b-hf-qlora-accelerated-peft-bnb-g1-b4",
]
"""Runs that are scored again here, of every source that the trace takes, with and without a library put
back.
"""
TRACED_AGAIN = ["fitcheck-smollm2-135m-lora-sdpa-b2-s512", "fms-main-mistral-7b-v0.1-lora-none-g1-b4"]


def test_every_row_has_its_source_and_says_what_it_is():
    assert len(published_runs()) >= 240 and len(EXPRESSED) >= 110 and len(times()) >= 12
    for row in published_runs():
        assert len(row.source.split()) >= 2 and row.note, row.id
        told = row.source.startswith(("issues:", "TRL v1.4 announcement"))  # what was said, not a file
        assert told or row.license in ("Apache-2.0", "BSD-3-Clause", "MIT"), row.id
        assert 2**29 < row.published_bytes < 100 * 2**30, row.id


@pytest.mark.parametrize("row", EXPRESSED, ids=lambda row: row.id)
def test_every_setup_can_be_asked(row):
    setup = EvaluationContext().setup(row.model, row.setup)
    assert setup.gpu and setup.recipe in ("raw", "hf", "trl") and row.measured
    assert set(row.put_back) <= {name for name, each in DIFFERENCES.items() if each.put_back}


@pytest.mark.parametrize(
    "library, version, model, setup, marks",
    [
        ("transformers", "4.48.1", "mistral-7b", {"recipe": "hf"}, ("shifted_logits",)),
        ("transformers", "4.49.0", "mistral-7b", {"recipe": "hf"}, ()),
        ("transformers", "4.45.2", "mistral-7b", {"recipe": "hf"}, ("cast_logits",)),
        ("transformers", "4.48.1", "mistral-7b", {"recipe": "hf", "loss": "fused"}, ()),
        ("transformers", "4.49.0", "mixtral-8x7b", {"recipe": "hf"}, ("linear_experts",)),
        ("transformers", "5.0.0", "mixtral-8x7b", {"recipe": "hf"}, ()),
        ("bitsandbytes", "0.43.1", "mistral-7b", {"recipe": "raw", "method": "qlora"}, ("kept_inputs",)),
        ("bitsandbytes", "0.43.2", "mistral-7b", {"recipe": "raw", "method": "qlora"}, ()),
        ("bitsandbytes", "0.43.1", "mistral-7b", {"recipe": "raw", "method": "lora"}, ()),
        ("trl", "1.14.2", "gemma-3-1b", {"recipe": "trl", "task": "dpo"}, ("whole_preference_logits",)),
        ("trl", "1.15.0", "gemma-3-1b", {"recipe": "trl", "task": "dpo"}, ()),
        ("trl", "1.4.0", "qwen3-4b", {"recipe": "trl", "loss": "chunked"}, ("checkpointed_chunks",)),
    ],
)
def test_a_run_is_marked_by_its_own_versions(library, version, model, setup, marks):
    told = {name for name, row in DIFFERENCES.items() if row.holds(model, setup, {library: version})}
    assert told == set(marks)


def test_no_run_of_an_older_release_goes_unmarked():
    """Every run of transformers before 4.49 with the whole logits is marked, whatever its error."""
    for row in EXPRESSED:
        version = row.versions.get("transformers")
        if version is not None and row.setup.get("loss", "full") == "full":
            assert {"shifted_logits", "cast_logits"} & set(row.differences), row.id


def test_what_ships_is_not_stale():
    assert list(SCORED) == [row.id for row in EXPRESSED], STALE
    for row in EXPRESSED:
        context = EvaluationContext()
        for engine, score in SCORED[row.id].engines.items():
            assert score.key == key_of(row, engine, context), f"{row.id}: {STALE}"
        assert (SCORED[row.id].counted, SCORED[row.id].differs) == (row.counted, row.differences), STALE
        assert dict(SCORED[row.id].measured) == dict(row.measured), STALE
    assert reserved_errors.SHIPPED.read_text() == reserved_errors.document(reserved_rows(SCORED.values())), (
        STALE
    )
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert TITLE + page.partition(TITLE)[2] == shipped_section(), STALE


@pytest.mark.parametrize("name", AGAIN)
def test_the_formula_still_says_what_ships(name):
    row = next(row for row in EXPRESSED if row.id == name)
    again = by_engine(row, "formula", EvaluationContext(), SCORED[name].engines["trace"])
    assert again == SCORED[name].engines["formula"], STALE


@pytest.mark.trace
@pytest.mark.parametrize("name", TRACED_AGAIN)
def test_the_trace_still_says_what_ships(name):
    pytest.importorskip("peft")
    row = next(row for row in EXPRESSED if row.id == name)
    assert by_engine(row, "trace", EvaluationContext()) == SCORED[name].engines["trace"], STALE


def test_with_the_library_put_back_the_trace_meets_what_was_measured():
    """transformers 4.48's copy of the shifted logits is what today's trace lacks of these runs: 4.4 and 7.4 %
    of allocated, and 0.03 % once it is there.
    """
    for name in ("mistral-7b-v0.1-lora-none-g1-b4", "mistral-7b-v0.1-qlora-accelerated-peft-bnb-g1-b4"):
        found = SCORED[f"fms-main-{name}"]
        measured, trace = found.measured["allocated"], found.engines["trace"]
        assert trace.predicted["allocated"] / measured - 1 < -0.04
        assert trace.as_recorded is not None
        assert abs(trace.as_recorded["allocated"] / measured - 1) < 0.0005


def test_an_update_goes_on_where_it_ended_and_asks_the_formula_anew(tmp_path):
    rows = [row for row in EXPRESSED if row.id in AGAIN[:2]]
    stale = {**SCORED[rows[1].id].engines, "formula": SCORED[rows[0].id].engines["formula"]}
    path = tmp_path / "scores.json"
    write(
        [SCORED[rows[0].id], scored_runs.ScoredRun(**{**fields(SCORED[rows[1].id]), "engines": stale})], path
    )
    told = []
    with listening(told.append):
        found = update(path, rows)
    assert [run.id for run in found] == [row.id for row in rows]
    assert [f"{n} of 2, {row.id}" for n, row in enumerate(rows, 1)] == [t for t in told if ": " not in t]
    assert list(found) == [SCORED[row.id] for row in rows] == list(scored_runs.read(path))


def fields(run: scored_runs.ScoredRun) -> dict[str, object]:
    return {name: getattr(run, name) for name in run.__slots__}


def test_a_score_without_its_trace_is_made_without_one():
    row = next(row for row in EXPRESSED if row.id == AGAIN[3])
    found = scored(row, EvaluationContext(), trace=False)
    assert list(found.engines) == ["formula"]
    score = found.engines["formula"]  # transformers 4.48.1, for which the formula has rules of its own
    assert score.as_recorded is not None
    assert score.as_recorded["allocated"] > score.predicted["allocated"]


def test_what_cannot_be_predicted_is_no_zero():
    adapters = [SCORED[row.id] for row in EXPRESSED if "adapter" in row.setup]
    assert len(adapters) >= 20
    for found in adapters:
        formula = found.engines["formula"]
        assert (
            not formula.predicted
            and "no rule" in formula.reason
            and found.error("formula", "reserved") is None
        )


def test_rows_that_were_shorter_than_said_count_for_nothing():
    """PEFT pads to the longest row of a batch, at most 768 tokens: 4 x 768 reserves 11 % more than was
    measured, and torch's own code agrees with the prediction there (a dry run: 23.26 GiB, torch 2.12).
    """
    lora = SCORED["peft-lora-r32"]
    error = lora.error("formula", "reserved")
    assert not lora.counted and "shorter_rows" in lora.differs and error is not None and error > 0.1


def test_outcomes_have_a_setup_or_a_reason():
    assert Counter(each.outcome for each in outcomes()) == {"oom": 53, "fits": 28}
    assert sum(each.setup is not None for each in outcomes()) >= 30
    assert [line["id"] for line in published_outcomes.shipped()] == [o.id for o in outcomes() if o.setup], (
        STALE
    )


def test_no_run_that_ran_out_of_memory_was_said_to_fit():
    """The target of tier C; an outcome at assumed settings is undecided and counts as neither."""
    for line in published_outcomes.shipped():
        for engine, score in line["engines"].items():
            assert score["judged"] not in ("false fits", "false no"), (line["id"], engine)
    lines = [(line, line["engines"]["formula"]["judged"]) for line in published_outcomes.shipped()]
    assumed = {outcome.id for outcome in outcomes() if outcome.assumed}
    undecided = [line for line, judged in lines if judged == "undecided"]
    assert {line["id"] for line in undecided} <= assumed
    assert sum(line["outcome"] == "oom" for line in undecided) <= 1
    assert sum(judged == "right" for _, judged in lines) >= 17


def test_verdicts_that_ship_are_not_stale():
    context = EvaluationContext()
    by_id = {line["id"]: line for line in published_outcomes.shipped()}
    for outcome in outcomes():
        if outcome.setup is None:
            continue
        shipped = by_id[outcome.id]["engines"]
        keys = {engine: published_outcomes.key_of(outcome, engine, context) for engine in shipped}
        assert {engine: score["key"] for engine, score in shipped.items()} == keys, f"{outcome.id}: {STALE}"


@pytest.mark.parametrize("name", ["hf4bit-04", "fms-fit-70b-qlora-b4", "litgpt-hub-llama-3-8b-full"])
def test_outcomes_are_judged_as_what_ships_says(name):
    outcome = next(each for each in outcomes() if each.id == name)
    again = published_outcomes.score_outcome(outcome, "formula", EvaluationContext())
    shipped = next(line for line in published_outcomes.shipped() if line["id"] == name)["engines"]["formula"]
    assert (again.verdict, again.low_bytes, again.high_bytes, again.judged) == tuple(
        shipped[key] for key in ("verdict", "low_bytes", "high_bytes", "judged")
    ), STALE


def test_the_command_and_its_document(capsys):
    assert run(["validate", "--published", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.validation/1"
    assert {entry["engine"] for entry in document["published"]} == {"formula", "trace"}
    assert len({entry["id"] for entry in document["published"]}) == len(EXPRESSED)
    for entry in document["published"]:
        predicted, published = entry["predicted"], entry["published"]
        assert entry["error"] == (None if predicted is None else predicted / published - 1)
    assert run(["validate", "--published", "--engine", "trace", "--json"]) == 0
    assert {e["engine"] for e in json.loads(capsys.readouterr().out)["published"]} == {"trace"}
    assert run(["validate", "--published"]) == 0
    assert "Published runs that count" in capsys.readouterr().out
    shown = tables(published_runs(), scored_runs.shipped(), published_outcomes.shipped(), outcomes())
    assert len(list(shown)) == 9


def test_an_update_outside_a_checkout_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["validate", "--published", "--update"]) == 2
    assert "checkout" in capsys.readouterr().err


def line_of(path: Path, name: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(n for n, text in enumerate(lines, start=1) if f'"id": "{name}"' in text)


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('"quality": "A"', '"quality": "D"', "quality is 'D', expected one of A, B, C"),
        ('"measured": {"reserved"', '"measured": {"felt"', "expected sizes in bytes by allocated"),
        ('"source":', '"sourec":', "source is missing"),
        ('"note":', '"caveat": 1, "note":', "unknown key 'caveat'"),
        ('"development"', '"developmnt"', "unknown key 'developmnt': did you mean development?"),
        ('"differs": ["shorter_rows"]', '"differs": ["longer"]', "differs is ['longer'], expected names of"),
        ('"setup": {', '"unexpressed": "why", "setup": {', "expected either setup or unexpressed"),
    ],
)
def test_a_wrong_key_is_named_with_its_line(tmp_path, old, new, words):
    lines = RUNS.read_text(encoding="utf-8").splitlines()
    number = next(n for n, text in enumerate(lines, start=1) if old in text)
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"mine.jsonl, line {number}: ") as caught:
        read_runs(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [("[1]", "expected an object"), ("{", "no JSON"), ('{"id": "x"}', "outcome is missing")],
)
def test_a_line_that_is_no_row_is_named(tmp_path, text, words):
    path = tmp_path / "mine.jsonl"
    path.write_text(OUTCOMES.read_text(encoding="utf-8") + text + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=rf"mine.jsonl, line {len(outcomes()) + 1}: ") as caught:
        read_outcomes(path)
    assert words in str(caught.value)


def test_two_rows_of_one_name_are_refused(tmp_path):
    path = tmp_path / "mine.jsonl"
    first = RUNS.read_text(encoding="utf-8").splitlines()[0]
    path.write_text(f"{first}\n{first}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 2: id 'peft-full' is that of an earlier line"):
        read_runs(path)


def test_every_model_is_known():
    for row in [*EXPRESSED, *(o for o in outcomes() if o.setup)]:
        find(row.model)
