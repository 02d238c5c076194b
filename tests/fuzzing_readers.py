"""Where a command has read its input and starts to compute: `fuzzing.py` ends most cases there, so that ten
thousand of a door take minutes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import click

from memplan import api
from memplan.planner.formula.parameters import ParameterTable


def requested(*args: Any, **kwargs: Any) -> Any:
    """The model and the Setup, the parsed config and the parameter table, whose targets and adapters are
    checked there; the end of the command with exit code 0.
    """
    model, setup = _request(*args, **kwargs)
    if setup.adapter is None and not api.unknown_family(model):
        ParameterTable(model.spec(), setup)
    raise click.exceptions.Exit(0)


def end(*args: Any, **kwargs: Any) -> Any:
    raise click.exceptions.Exit(0)


_request = api.request
MODELS: dict[str, Callable[..., Any]] = {
    "memplan.api.request": requested,
    "memplan.cli.sizes.answer_by_size": end,
}
READERS: dict[str, dict[str, Callable[..., Any]]] = {
    **dict.fromkeys(
        ("config", "training", "setup", "adapter", "script", "notebook", "launch", "options"), MODELS
    ),
    "record": {"memplan.validate.collect.reconcile_all": end},
    "claims": {"memplan.validate.claims.check": end},
}
"""Door -> what its command calls with all that was read, and what is called instead. The other doors compute
next to nothing.
"""


@contextlib.contextmanager
def reading_alone(door: str) -> Iterator[None]:
    """Commands end where the input of a door has been read."""
    with contextlib.ExitStack() as stack:
        for place, instead in READERS.get(door, {}).items():
            stack.enter_context(patch(place, instead))
        yield
