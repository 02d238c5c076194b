"""Every model of the catalog, every method, every command that predicts: all answer, or say what to do
instead.

By hand, in a seeded order, so that what is done is a sample at any time, and on from where the log
ends: `PYTHONPATH=.:tests python -m test_catalog_commands plan catalog.jsonl [--share 500]`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

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
    "is trained to transcribe: use --task seq2seq",
    "Module 'out_proj' is incompatible with Mamba-based models",  # all-linear names it, PEFT refuses it
    "a page computes its sliders from the formula's expressions",
    # prefix tuning of latent heads
    "which cannot be concatenated with the model's own keys: use another method",
    "prompt tuning needs embeddings as wide as the layers",  # opt-350m's are 512 wide, its layers 1,024
)
"""What a library cannot do, or the formula has no rule for: exit 2, and each says the next move."""
BY_FORMULA = [name for name, row in METHODS.items() if not row.traced]
CASES = sorted(itertools.product(index(), BY_FORMULA, COMMANDS))
SAMPLE = sorted(random.Random(20261128).sample(CASES, 58))
ALWAYS = [("opt-350m", "adalora", "plan"), ("opt-350m", "lora", "compare")]


def check(model: str, method: str, command: str, folder: Path) -> None:
    words = {"model": model, "method": method, "page": str(folder / "page.html")}
    code, out, err = answered(Line([word.format(**words) for word in COMMANDS[command]]))
    assert not broken_promises(code, out, err, [])
    assert code in (0, 1) or (code == 2 and any(words in err for words in REFUSALS)), (code, err)
    if code != 2 and command == "report":
        assert (folder / "page.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def timed(model: str, method: str, command: str) -> Any:
    """A page takes up to a minute: those of the sample are slow ones but the first."""
    page = command == "report" and (model, method, command) != next(c for c in SAMPLE if c[2] == "report")
    return pytest.param(model, method, command, marks=pytest.mark.slow if page else ())


@pytest.mark.parametrize(("model", "method", "command"), [*ALWAYS, *(timed(*case) for case in SAMPLE)])
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Every model x every method under one command, by hand.")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("log", type=Path)
    parser.add_argument("--share", type=int, help="this many of the cases; default: all")
    chosen = parser.parse_args()
    every = sorted(itertools.product(index(), METHODS))
    cases = random.Random(20261128).sample(every, chosen.share or len(every))
    lines = chosen.log.read_text(encoding="utf-8").splitlines() if chosen.log.exists() else []
    done = {(e["command"], e["model"], e["method"]): e["failed"] for e in map(json.loads, lines)}
    for model, method in cases:
        if (chosen.command, model, method) in done:
            continue
        started, failed = time.perf_counter(), ""
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(model, method, chosen.command, Path(folder))
            except Exception as error:
                failed = f"{type(error).__name__}: {str(error)[:500]}"
        done[chosen.command, model, method] = failed
        entry = {"command": chosen.command, "model": model, "method": method, "failed": failed}
        with chosen.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry | {"seconds": round(time.perf_counter() - started, 2)}) + "\n")
        if failed:
            print(chosen.command, model, method, failed, flush=True)
    found = [done[chosen.command, *case] for case in cases]
    print(f"{chosen.command}: {len(found)} of {len(every)} cases, {sum(map(bool, found))} failed")


if __name__ == "__main__":
    main()
