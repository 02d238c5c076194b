"""One stacked bar, scaled to a GPU: a segment for each component, a mark where usable memory ends. Glyphs
differ: no color needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text


class Style(NamedTuple):
    """How one segment is drawn: a block glyph, an ASCII one, a color."""

    glyph: str
    ascii: str
    color: str


STYLES: dict[str, Style] = {
    "weights": Style("█", "W", "blue"),
    "gradients": Style("▓", "G", "magenta"),
    "optimizer_states": Style("▒", "O", "yellow"),
    "activations": Style("░", "A", "green"),
    "temporaries": Style("▚", "T", "cyan"),
    "fragmentation": Style("-", "-", "white"),
    "cuda_context": Style("▪", "c", "white"),
    "unattributed": Style("?", "?", "red"),
}


def key_of(name: str, ascii_only: bool) -> Text:
    """The glyph of one segment, for a legend."""
    style = STYLES[name]
    return Text(style.ascii if ascii_only else style.glyph, style=style.color)


def stacked_bar(
    segments: Sequence[tuple[str, int]], scale: int, usable: int | None, width: int, ascii_only: bool = False
) -> Text:
    """Segments (name, bytes) end to end over `scale` bytes in `width` cells, rounded at the running total;
    '|' marks `usable` bytes.
    """
    cells: list[tuple[str, str]] = [(" ", "")] * width
    position, total = 0, 0
    for name, nbytes in segments:
        total += nbytes
        end = min(width, round(total * width / scale))
        style = STYLES[name]
        glyph = style.ascii if ascii_only else style.glyph
        cells[position:end] = [(glyph, style.color)] * max(0, end - position)
        position = max(position, end)
    free = "." if ascii_only else "·"
    cells = [(free, "dim") if cell == (" ", "") else cell for cell in cells]
    if usable is not None and usable <= scale:
        cells[min(width - 1, round(usable * width / scale))] = ("|", "bold red")
    bar = Text()
    for glyph, color in cells:
        bar.append(glyph, style=color or None)
    return bar


def ruler(scale: int, usable: int | None, width: int, labels: tuple[str, str, str]) -> Text:
    """The line under the bar: `labels` for its start, its usable mark and its end, never overlapping."""
    start, mark, end = labels
    line = list(start.ljust(width - len(end)) + end) if end else list(start.ljust(width))
    if usable is not None and mark:
        last = width - len(end) - 1 - len(mark) if end else width - len(mark)
        at = max(len(start) + 1, min(round(usable * width / scale) - len(mark) + 1, last))
        line[at : at + len(mark)] = mark
    return Text("".join(line), style="dim")
