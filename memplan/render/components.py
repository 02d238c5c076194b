"""The device peak in numbers: components by moment, as a table and as one stacked bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from memplan.planner.prediction import Breakdown, Prediction
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import GIB, gib
from memplan.render.bar import key_of, ruler, stacked_bar
from memplan.render.text import label, number

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_MOMENTS = 5
SPACING = ((2, 2, True), (1, 2, True), (1, 1, True), (2, 2, False), (1, 1, False), (0, 0, False))
"""(blanks between columns, decimals, whether each moment has its column), the roomiest first."""


def bar_lines(prediction: Prediction, gpu: Gpu | None, width: int, ascii_only: bool) -> list[Text]:
    """The stacked device peak against the GPU; without one, against the smallest common GPU that fits, else
    against itself.
    """
    segments = device_segments(prediction, gpu)
    needed = sum(size for _, size in segments)
    verdict = (
        prediction.gpus[0]
        if gpu is not None
        else next((v for v in prediction.gpus if v.verdict == "fits"), None)
    )
    usable = verdict.usable_bytes if verdict else None
    whole = max(needed, usable or 0, nominal_bytes(gpu))
    name = verdict.name if verdict else "this run"
    mark = f"{gib(usable)} usable" if usable else ""
    end = name if usable and needed <= usable else f"{name}: {gib(needed)} needed"
    bar = stacked_bar(segments, whole, usable if usable and usable < whole else None, width, ascii_only)
    return [bar, ruler(whole, usable, width, ("0", mark, end))]


def nominal_bytes(gpu: Gpu | None) -> int:
    """The vendor's size read as GiB, which is what a GPU is called by; 0 for a budget."""
    return round((gpu.marketing_gb or 0) * GIB) if gpu else 0


def device_segments(prediction: Prediction, gpu: Gpu | None) -> list[tuple[str, int]]:
    """The device peak in order: components at the peak moment, what is reserved beyond them, the CUDA
    context.
    """
    peak = prediction.peak
    context = gpu.context_bytes if gpu else peak.context_bytes
    components = prediction.moment(peak.moment).components
    return [
        *((name, components[name]) for name in COMPONENTS),
        ("fragmentation", max(0, peak.reserved_bytes - peak.allocated_bytes)),
        ("cuda_context", context),
    ]


def component_table(prediction: Prediction, gpu: Gpu | None, ascii_only: bool, width: int = 80) -> Table:
    """Components by moment in `width` columns: what is narrow gives up blanks, a decimal, then the moments;
    no number is ever cut.
    """
    console = Console(width=1000)
    for spacing in SPACING:
        table = _component_table(prediction, gpu, ascii_only, *spacing)
        if console.measure(table).maximum <= width:
            break
    return table


def _component_table(
    prediction: Prediction, gpu: Gpu | None, ascii_only: bool, blanks: int, digits: int, each: bool
) -> Table:
    """Rows: components, allocated, fragmentation, context, device. Columns: GiB and share at the peak, then
    each moment's own peak.
    """
    moments = shown_moments(prediction) if each else []
    peak = prediction.moment(prediction.peak.moment)
    segments = dict(device_segments(prediction, gpu))
    device = sum(segments.values())
    from rich.table import Table

    table = Table(box=None, padding=(0, blanks, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("GiB", no_wrap=True)
    table.add_column("at the\npeak", justify="right", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    for moment in moments:
        table.add_column(
            label(moment.moment).replace(" ", "\n"),
            justify="right",
            no_wrap=True,
            style="bold" if moment.moment == peak.moment else "",
        )

    def row(name: str, key: str | None, size: int, per_moment: Sequence[int | None], style: str = "") -> None:
        legend = key_of(key, ascii_only) if key else Text()
        cells = [number(value, digits) for value in per_moment]
        table.add_row(legend, name, number(size, digits), f"{100 * size / device:.1f}", *cells, style=style)

    for name in COMPONENTS:
        row(label(name), name, segments[name], [moment.components[name] for moment in moments])
    row("allocated", None, peak.allocated_bytes, [moment.allocated_bytes for moment in moments], "bold")
    nothing: list[int | None] = [None] * len(moments)
    if segments["fragmentation"]:
        row("fragmentation", "fragmentation", segments["fragmentation"], nothing)
    row("CUDA context", "cuda_context", segments["cuda_context"], nothing)
    row("device", None, device, nothing, "bold")
    return table


def shown_moments(prediction: Prediction) -> list[Breakdown]:
    """At most five moments in their order, the peak's always among them; the document has all."""
    moments = list(prediction.moments)
    if len(moments) <= SHOWN_MOMENTS:
        return moments
    smallest = sorted(
        (m for m in moments if m.moment != prediction.peak.moment), key=lambda m: m.allocated_bytes
    )
    dropped = {m.moment for m in smallest[: len(moments) - SHOWN_MOMENTS]}
    return [m for m in moments if m.moment not in dropped]
