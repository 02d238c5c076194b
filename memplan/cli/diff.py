"""memplan diff OLD.json NEW.json: what moved between two predictions or measurements; --fail-over makes it a
gate.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from memplan.cli.options import HELP
from memplan.planner.tables.errors import ToleranceError, UsageError, shorten


@click.command(
    "diff",
    context_settings=HELP,
    short_help="Show what changed between two predictions or measurements.",
)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--fail-over",
    metavar="PERCENT",
    help="Exit 4 if a peak or moment grew by more than PERCENT: 1%, 0.5%, 0.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(old: Path, new: Path, fail_over: str | None, as_json: bool) -> None:
    """Show what changed from OLD to NEW in peaks, moments, components and rows. Both are --json documents;
    write them with --explain to see tensors by name.

    With --fail-over, exit 4 if a peak or moment grew too much.
    """
    from memplan.planner.answers.diff import diff
    from memplan.planner.inputs.jsonfile import read_json

    limit = None if fail_over is None else read_percent(fail_over)
    found = diff(read_json(old, infinity=False), read_json(new, infinity=False))
    if as_json:
        from memplan.render.json import write

        write(found.to_document())
    else:
        from memplan.render.console import show
        from memplan.render.diff import diff_screen

        show(*diff_screen(found))
    if limit is not None and (beyond := found.beyond(limit)):
        raise ToleranceError(gate_message(found, beyond[0], fail_over or ""))


def gate_message(found: Any, worst: Any, limit: str) -> str:
    """One sentence for a gate: what grew, by how much, and the row or component of that moment that grew
    most.
    """
    share = "from nothing" if worst.fraction is None else f"by {worst.fraction:.2%}"
    text = f"{' '.join(worst.what)} grew {share} ({worst.moved:,} bytes), more than {limit} allows"
    within = [change for change in (*found.rows, *found.components) if change.what[0] == worst.what[0]] or [
        *found.rows,
        *found.components,
    ]
    causes = [change for change in within if change.moved > 0][:1]
    return text + "".join(
        f"; most of all {': '.join(part for part in change.what if part)} ({change.moved:+,} bytes)"
        for change in causes
    )


def read_percent(text: str) -> float:
    """A percentage as a fraction: '1%', '0.5 %' or '0'. UsageError otherwise."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*|\s*0\s*", text)
    if match is None:
        raise UsageError(f"--fail-over '{shorten(text)}': expected a percentage such as 1%")
    return float(match.group(1) or 0) / 100
