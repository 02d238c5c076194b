"""Published figures: enough of them, complete, legal, and scored apart."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from memplan.cli.main import run
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError
from memplan.validate.engines import Missing
from memplan.validate.published import SHIPPED, figures, read_figures, score


def test_at_least_fifteen_well_documented_figures():
    """Quality A or B: every setting that matters is known."""
    quality = Counter(figure.quality for figure in figures())
    assert quality["A"] + quality["B"] >= 15
    assert len({figure.id for figure in figures()}) == len(figures())


@pytest.mark.parametrize("figure", figures(), ids=lambda figure: figure.id)
def test_every_figure_can_be_asked(figure):
    find(figure.model)
    setup = resolve(figure.setup)
    assert setup.gpu and setup.recipe == "raw"
    assert len(figure.source.split()) >= 2 and figure.note
    assert 2**30 < figure.value_bytes < 100 * 2**30


def test_scores_are_worst_first_and_what_cannot_be_predicted_is_no_zero():
    scores = score()
    errors = [abs(s.error) for s in scores if s.error is not None]
    assert errors == sorted(errors, reverse=True) and len(errors) >= 10
    adapters = [s for s in scores if "adapter" in s.figure.setup]
    assert adapters and all(s.predicted is None and "no rule" in s.reason for s in adapters)


@pytest.mark.xfail(
    strict=True,
    reason="rows of 768 tokens are the most: the run's were shorter, by how much is not published",
)
def test_plain_lora_is_near_what_peft_published():
    """Rows of 768 tokens reserve 11.4 % more than was measured. Torch's own code agrees with the prediction
    there: a dry run of 4 x 768 reserves 23.26 GiB (torch 2.12), the formula 23.12, the run 20.76.
    """
    lora = next(s for s in score() if s.figure.id == "peft-lora-r32")
    assert lora.error is not None and abs(lora.error) < 0.06


def test_the_command_and_its_document(capsys):
    assert run(["validate", "--published", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.validation/1" and len(document["published"]) == len(figures())
    assert run(["validate", "--published"]) == 0
    assert "never used for tuning" in capsys.readouterr().out


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('quality = "A"', 'quality = "D"', "figure 1: quality is 'D', expected one of A, B, C"),
        ('metric = "reserved"', 'metric = "felt"', "figure 1: metric is 'felt'"),
        ('unit = "B"', 'unit = "furlongs"', "figure 1: unit is 'furlongs'"),
        ('id = "peft-full"', 'ident = "peft-full"', "figure 1: id is missing"),
        ("memplan.published/1", "memplan.published/2", "expected memplan.published/1"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, words):
    path = tmp_path / "mine.toml"
    path.write_text(SHIPPED.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match="mine.toml") as caught:
        read_figures(path)
    assert words in str(caught.value)


def test_a_missing_prediction_is_said_not_raised():
    assert issubclass(Missing, Exception) and not issubclass(Missing, UsageError)
