"""An out-of-memory message explained, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from memplan.planner.answers.oom import OutOfMemoryMessage
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import gib
from memplan.render.console import show


def oom_screen(oom: OutOfMemoryMessage, cards: Sequence[Gpu], sentences: Sequence[str]) -> None:
    """What was asked, held and free, then the sentences, then which GPUs would have held it and what would
    have fitted.
    """
    where = f"GPU {oom.gpu}" if oom.gpu is not None else oom.device
    times = f", {oom.failures} times in this log" if oom.failures > 1 else ""
    lines = [
        Text(f"out of memory on {where}{times}", style="bold red").append(
            f"   ({oom.form})", style="not bold dim"
        )
    ]
    names = ("capacity", "free", "asked", "in_use", "allocated", "reserved", "cached")
    labels = {
        "asked": "requested",
        "in_use": "in use by this process",
        "allocated": "allocated to tensors",
        "reserved": "reserved by PyTorch",
        "cached": "reserved but unused",
    }
    for name in names:
        size = getattr(oom, name)
        if size is not None:
            lines.append(Text(f"  {labels.get(name, name):<24}{gib(size):>14}"))
    lines += [Text(), *(Text(line) for line in sentences)]
    if cards:
        lines += [
            Text(
                "GPUs with enough memory: "
                + ", ".join(f"{gpu.name} ({gib(gpu.usable_bytes)})" for gpu in cards)
            )
        ]
    show(*lines)
