"""Every model of the catalog, every method, every command that predicts: all answer, or say what to do
instead.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from fuzzing import answered, broken_promises
from fuzzing_doors import Line

from memplan.planner.inputs.models import index
from memplan.planner.tables.methods import METHODS

COMMANDS = {
    "plan": ["plan", "{model}", "--engine", "formula", "--method", "{method}", "--json"],
    "compare": ["compare", "{model}", "--engine", "formula", "--method", "{method}"],
    "fit": ["fit", "{model}", "--engine", "formula", "--method", "{method}", "--gpu", "rtx-3060"],
    "report": ["report", "{model}", "--method", "{method}", "-o", "{page}"],
}
REFUSALS = (
    "PEFT has no IA3 targets of its own for model_type",
    "returns a tuple: PEFT's layer fails there; use --targets attention",
    "peft has no DoRA for the parameters of experts",
    "use --engine trace",
)
"""What a library cannot do, or the formula has no rule for: exit 2, and each says the next move."""
CASES = sorted(itertools.product(index(), METHODS, COMMANDS))
SAMPLE = sorted(random.Random(20261128).sample(CASES, 58))
ALWAYS = [("opt-350m", "adalora", "plan"), ("opt-350m", "lora", "compare")]


def check(model: str, method: str, command: str, folder: Path) -> None:
    words = {"model": model, "method": method, "page": str(folder / "page.html")}
    code, out, err = answered(Line([word.format(**words) for word in COMMANDS[command]]))
    assert not broken_promises(code, out, err, [])
    assert code in (0, 1) or (code == 2 and any(words in err for words in REFUSALS)), (code, err)
    if code != 2 and command == "report":
        assert (folder / "page.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


@pytest.mark.parametrize(("model", "method", "command"), [*ALWAYS, *SAMPLE])
def test_a_sample_of_the_catalog_answers(model: str, method: str, command: str, tmp_path: Path) -> None:
    check(model, method, command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(index()))
def test_the_whole_catalog_answers(model: str, tmp_path: Path) -> None:
    failed = {}
    for method, command in itertools.product(METHODS, COMMANDS):
        try:
            check(model, method, command, tmp_path)
        except AssertionError as error:
            failed[method, command] = str(error)[:500]
    assert not failed
