"""A pytest fixture that keeps a training setup's memory from growing unnoticed: `memplan_gate`.

    def test_memory(memplan_gate):
        memplan_gate("llama-lora", "llama-7b", method="lora", sequence_length=1024, engine="trace",
        fail_over=0.01)

The first run with `--memplan-update` records the prediction beside the tests; later runs compare. No GPU is
needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = "memplan_baselines"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--memplan-update`, which records new baselines."""
    group = parser.getgroup("memplan")
    group.addoption(
        "--memplan-update", action="store_true", help="record new memory baselines for memplan_gate"
    )


@pytest.fixture
def memplan_gate(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A function (name, model, fail_over=0.01, **plan's arguments): predicts, compares with the baseline,
    returns the prediction.
    """
    folder = Path(request.path).parent / FOLDER
    update = bool(request.config.getoption("--memplan-update"))

    def gate(name: str, model: Any, *, fail_over: float = 0.01, **fields: Any) -> Any:
        import memplan
        from memplan.cli.diff import gate_message
        from memplan.planner.answers.diff import diff

        if not re.fullmatch(r"[\w.-]{1,80}", name):
            raise ValueError(f"baseline name {name!r}: expected letters, digits, '.', '-' and '_'")
        prediction = memplan.plan(model, **fields)
        document = prediction.to_document(explain=True)
        path = folder / f"{name}.json"
        if update:
            folder.mkdir(exist_ok=True)
            path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            return prediction
        if not path.is_file():
            pytest.fail(
                f"no baseline {path}: run pytest --memplan-update once and commit the file", pytrace=False
            )
        found = diff(json.loads(path.read_text(encoding="utf-8")), document)
        beyond = found.beyond(fail_over)
        if beyond:
            pytest.fail(gate_message(found, beyond[0], f"{fail_over:.2%}"), pytrace=False)
        return prediction

    return gate
