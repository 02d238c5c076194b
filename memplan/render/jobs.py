"""The answer of `memplan fit jobs.yaml` on the terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memplan.planner.answers.fit.jobs import JobsAnswer
from memplan.planner.tables.units import gib


def jobs_screen(answer: JobsAnswer) -> list[RenderableType]:
    """One row per job, then the one GPU that is cheapest for all of them."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name, justify in (
        ("job", "left"),
        ("needs", "right"),
        ("smallest GPU", "left"),
        ("cheapest GPU", "left"),
        ("price", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for job in answer.jobs:
        price = answer.prices.get(job.cheapest) if job.cheapest else None
        table.add_row(
            job.name,
            f"{'≥ ' if job.at_least else ''}{gib(job.device_bytes)}",
            job.smallest or (f"at least {job.at_least}" if job.at_least else "none"),
            job.cheapest or "-",
            "-" if price is None else f"{price:g}",
        )
    uncounted = [job.name for job in answer.jobs if job.at_least]
    one = answer.one_for_all or (
        f"unknown, not all that {', '.join(uncounted)} needs is counted" if uncounted else "no single GPU"
    )
    return [table, Text(), Text(f"one GPU for every job: {one}")]
