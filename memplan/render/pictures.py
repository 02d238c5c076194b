"""The two main pictures through matplotlib: the step against the GPU, and what fits. For READMEs, papers and
slides.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

from memplan.planner.answers.fit.frontier import BATCHES, Room, Structure
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import GIB
from memplan.render.text import label

COLOURS = {
    "weights": "#3f72b8",
    "gradients": "#b1579b",
    "optimizer_states": "#d29a2e",
    "activations": "#3f9b6b",
    "temporaries": "#57aebf",
}
SEQUENCES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def draw(spec: ModelSpec, setup: Setup, prediction: Prediction, gpu: Gpu, path: Path) -> bytes:
    """Both pictures side by side as a file's content; the format is the ending of `path`. Raises UsageError
    where matplotlib is missing or refuses.
    """
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("pictures need matplotlib: pip install 'memplan[plot]'") from None
    rcParams["svg.hashsalt"] = "memplan"  # the same picture gives the same file
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _step(left, prediction, gpu)
    _heat(right, spec, setup, Room(gpu, prediction.accuracy.margin).around(spec, setup))
    title = (
        f"{spec.name}, {setup.method}, micro-batch {setup.micro_batch:,} x {setup.sequence_length:,} tokens "
        f"on {gpu.name}"
    )
    figure.suptitle(title.replace("$", r"\$"), fontsize=12)
    content, kind = io.BytesIO(), path.suffix.lower().removeprefix(".") or "png"
    try:
        figure.savefig(content, dpi=150, format=kind, metadata={"Date": None} if kind == "svg" else None)
    except ValueError as error:
        raise UsageError(f"cannot draw the picture {shorten(path.name)}: {error}") from None
    return content.getvalue()


def _step(axes: Any, prediction: Prediction, gpu: Gpu) -> None:
    """Stacked components of every moment, with the GPU's usable memory as a line."""
    names = [moment.moment for moment in prediction.moments]
    bottoms = [0.0] * len(names)
    for component in COMPONENTS:
        sizes = [moment.components[component] / GIB for moment in prediction.moments]
        axes.bar(
            [label(name) for name in names],
            sizes,
            bottom=bottoms,
            color=COLOURS[component],
            label=label(component),
            width=0.7,
        )
        bottoms = [bottom + size for bottom, size in zip(bottoms, sizes, strict=True)]
    for index, total in enumerate(bottoms):
        axes.text(index, total, f"{total:.1f}", ha="center", va="bottom", fontsize=9)
    axes.axhline(gpu.usable_bytes / GIB, color="#b3372f", linewidth=1.5)
    axes.text(
        len(names) - 0.5,
        gpu.usable_bytes / GIB,
        f"{gpu.name} ",
        ha="right",
        va="bottom",
        fontsize=9,
        color="#b3372f",
    )
    axes.set_ylabel("allocated, GiB")
    axes.set_ylim(0, 1.18 * max(gpu.usable_bytes / GIB, *bottoms))
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=9)


def _heat(axes: Any, spec: ModelSpec, setup: Setup, room: Room) -> None:
    """Device memory by micro-batch and sequence length, and the line where it stops fitting."""
    from matplotlib.colors import ListedColormap

    limit = spec.max_positions or SEQUENCES[-1]
    columns = [s for s in SEQUENCES if s <= limit] or [limit]
    structure = Structure(spec, setup, room)
    cells = {(cell.micro_batch, cell.sequence_length): cell for cell in structure.cells(BATCHES, columns)}
    grid = [[int(cells[batch, sequence].fits) for sequence in columns] for batch in BATCHES]
    axes.imshow(grid, aspect="auto", cmap=ListedColormap(["#f2d5d1", "#cfe6d9"]), vmin=0, vmax=1)
    for (i, batch), (j, sequence) in itertools.product(enumerate(BATCHES), enumerate(columns)):
        size = cells[batch, sequence].device_bytes / GIB
        text = f"{size:.1f}" if size < 100 else f"{size:.0f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="#1d2125")
    edges = [sum(row) - 0.5 for row in grid]
    corners = [(edge, i + half) for i, edge in enumerate(edges) for half in (-0.5, 0.5)]
    axes.plot(*zip(*corners, strict=True), color="#b3372f", linewidth=2)
    axes.set_xticks(range(len(columns)), [f"{s:,}" for s in columns], fontsize=8)
    axes.set_yticks(range(len(BATCHES)), [str(b) for b in BATCHES])
    axes.set_xlabel("sequence length")
    axes.set_ylabel("micro-batch")
    axes.set_title(
        f"device memory in GiB; left of the line fits {room.gpu.usable_bytes / GIB:.1f} GiB", fontsize=10
    )
