"""Models of every size, method by method, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memplan.planner.answers.fit.sizes import SizeFit
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import gib
from memplan.render.text import count

STYLES = {"fits": "green", "tight": "yellow", "no": "red", None: ""}


def sizes_screen(
    found: Sequence[SizeFit], setup: Setup, gpu: Gpu | None, notes: Sequence[str]
) -> list[RenderableType]:
    """One row a model, one column a method: what it needs, and on a GPU the largest micro-batch."""
    where = f"{gpu.name}: {gib(gpu.usable_bytes)} usable; " if gpu else "no model named: "
    title = Text(where, style="bold").append(
        f"micro-batch {setup.micro_batch:,} x {setup.sequence_length:,} tokens, recipe {setup.recipe}",
        style="not bold",
    )
    methods = list(dict.fromkeys(entry.method for entry in found))
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("such as")
    for method in methods:
        table.add_column(method, justify="right")
    for model in dict.fromkeys(entry.model for entry in found):
        cells = {entry.method: entry for entry in found if entry.model == model}
        first = next(iter(cells.values()))
        table.add_row(
            count(first.parameters), model, *(_cell(cells[method], gpu is not None) for method in methods)
        )
    says = (
        "what each needs; in brackets the largest micro-batch that fits, - where none does"
        if gpu
        else "what each needs on a GPU"
    )
    rest = [Text(line, style="dim") for line in (says, *notes)]
    return [title, Text(), table, Text(), *rest]


def _cell(entry: SizeFit, on_gpu: bool) -> Text:
    if entry.error is not None:
        return Text("-", style="dim")
    bound = entry.verdict is None and on_gpu
    text = Text(f"{'≥ ' if bound else ''}{gib(entry.device_bytes)}", style=STYLES[entry.verdict])
    if on_gpu:
        text.append(f" ({'-' if entry.largest_batch is None else entry.largest_batch})")
    return text
