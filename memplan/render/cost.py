"""What a run costs beside GPU memory, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from memplan.planner.answers.cost import Cost, Range
from memplan.planner.tables.units import gib


def cost_block(cost: Cost) -> Table:
    """Time, money, disk and host memory, a line each."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for head, text in _lines(cost):
        table.add_row(head, Text(text))
    return table


def _lines(cost: Cost) -> Iterator[tuple[str, str]]:
    if cost.step_seconds is None or cost.tokens_per_second is None:
        yield "Time", f"not estimated: {cost.why}"
    else:
        speed = f"{_span(cost.step_seconds)} s per step, {_span(cost.tokens_per_second)} tokens per second"
        yield "Time", f"{speed} ({cost.why})"
    if cost.hours is not None:
        of = f" on {cost.gpus} GPUs" if cost.gpus > 1 else ""
        money = f", {_span(cost.money)} at {cost.price:g} per GPU-hour" if cost.money else ""
        yield "Run", f"{cost.tokens:,} tokens: {cost.steps:,} steps, {_duration(cost.hours)}{of}{money}"
    states = f" + optimizer states {gib(cost.states_bytes)}" if cost.states_bytes else ""
    yield (
        "Disk",
        f"each checkpoint {gib(cost.model_bytes + cost.states_bytes)}: model {gib(cost.model_bytes)}{states}",
    )
    kept = f"{gib(cost.offloaded_bytes)} kept there; " if cost.offloaded_bytes else ""
    yield (
        "Host",
        (
            f"{kept}reading the checkpoint takes up to {gib(cost.read_bytes)} with device_map, "
            f"{gib(cost.whole_bytes)} per process without"
        ),
    )


_UNITS = (
    (2 / 60, "seconds", 3600.0),
    (2, "minutes", 60.0),
    (72, "hours", 1.0),
    (float("inf"), "days", 1 / 24),
)
"""Up to how many hours a time is said in a unit, and how many of it are an hour."""


def _duration(hours: Range) -> str:
    unit, scale = next((unit, scale) for most, unit, scale in _UNITS if hours[1] <= most)
    return f"{_span((hours[0] * scale, hours[1] * scale))} {unit}"


def _span(values: Range | None) -> str:
    """Two numbers with two digits that count, once where they read the same."""
    if values is None:
        return ""
    least, most = (_short(value) for value in values)
    return least if least == most else f"{least} to {most}"


def _short(value: float) -> str:
    if value >= 100:
        digits = len(str(int(value))) - 2
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
