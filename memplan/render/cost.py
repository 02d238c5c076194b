"""What a run costs beside GPU memory, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from memplan.planner.answers.cost import Cost, duration, span
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
        speed = f"{span(cost.step_seconds)} s per step, {span(cost.tokens_per_second)} tokens per second"
        yield "Time", f"{speed} ({cost.why})"
    if cost.hours is not None:
        of = f" on {cost.gpus} GPUs" if cost.gpus > 1 else ""
        money = f", {span(cost.money)} at {cost.price:g} per GPU-hour" if cost.money else ""
        yield (
            "Run",
            f"{cost.tokens:,} tokens: {cost.steps:,} steps, {' '.join(duration(cost.hours))}{of}{money}",
        )
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
