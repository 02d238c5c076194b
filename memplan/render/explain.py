"""`--explain`: components by moment, why the peak is where it is, then every row with shape, dtype, count,
bytes and reason, to be checked by hand; they add up to the moment's total.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memplan.planner.prediction import Prediction, Row
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import gib
from memplan.render.components import bar_lines, component_table
from memplan.render.sentences import paragraph, why_there
from memplan.render.text import label


def explanation(
    prediction: Prediction, gpu: Gpu | None, width: int, ascii_only: bool
) -> list[RenderableType]:
    """Everything that --explain adds to the first screen."""
    return [
        *bar_lines(prediction, gpu, width, ascii_only),
        Text(),
        component_table(prediction, gpu, ascii_only, width),
        Text(),
        paragraph("Peak", why_there(prediction)),
        Text(),
        *explain_rows(prediction),
    ]


def explain_rows(prediction: Prediction) -> Iterator[RenderableType]:
    """The rows alive at the peak by component, largest first, then what each other moment adds up to."""
    moment = prediction.moment(prediction.peak.moment)
    blocks = any(row.block_bytes is not None for row in moment.rows)
    yield Text(f"Every tensor alive at the peak, in {label(moment.moment)}", style="bold")
    for component in COMPONENTS:
        rows = [row for row in prediction.peak_rows if row.component == component]
        if not rows:
            continue
        yield Text()
        yield Text(
            f"{label(component)}: {moment.components[component]:,} bytes "
            f"({gib(moment.components[component])})",
            style="bold",
        )
        yield Padding(_table(rows, blocks), (0, 0, 0, 2))
    yield Text()
    total = sum(row.charged for row in moment.rows)
    yield Text(
        f"{len(moment.rows)} rows add up to {total:,} bytes ({gib(total)}), the peak allocated in "
        f"{label(moment.moment)}.",
        style="bold",
    )


def _table(rows: list[Row], blocks: bool) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        shape = "x".join(str(size) for size in row.shape) or "scalar"
        count = f" x {row.count:,}" if row.count != 1 else ""
        charged = (
            f"; {row.block_bytes:,} bytes in the allocator's blocks"
            if blocks and row.block_bytes is not None
            else ""
        )
        text = Text(row.name, style="bold").append(
            f"  [{shape}] {row.dtype}{count}{charged}", style="not bold"
        )
        text.append(f"\n{row.why}", style="dim not bold")
        table.add_row(f"{row.bytes:,}", text)
    return table
