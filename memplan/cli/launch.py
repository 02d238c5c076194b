"""memplan [OPTIONS] -- LAUNCH LINE: the command line that starts a training run, as typed; it is read, never
run.
"""

from __future__ import annotations

from typing import Any

import click

from memplan.cli.options import lengths_option, plan_options
from memplan.cli.plan import answer
from memplan.cli.subject import read_launch_line
from memplan.planner.tables.errors import UsageError


@click.command("launch-line", hidden=True, context_settings={"allow_interspersed_args": False})
@plan_options
@lengths_option
@click.option("--explain", is_flag=True)
@click.option("--assumptions", is_flag=True)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command(words: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Predict the run that a launch line would start."""
    if not words:
        raise UsageError(
            "nothing follows --: expected a launch line such as memplan -- accelerate launch train.py"
        )
    return answer(read_launch_line(words, options), options, as_json)
