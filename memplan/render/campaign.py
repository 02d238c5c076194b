"""A campaign on the terminal: what runs, what is done, what failed, the time left; then the summary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from memplan.profiler.campaign import Progress, Summary
from memplan.render.console import make_console


def duration(seconds: float | None) -> str:
    """'1 h 05 min', '4 min 10 s', '9 s'; '??' where nobody knows yet."""
    if seconds is None:
        return "??"
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def counts_line(progress: Progress) -> str:
    """'7 of 12 recorded (3 before this run), 1 out of memory, 0 failed'."""
    recorded = progress.already + progress.done
    before = f" ({progress.already} before this run)" if progress.already else ""
    return (
        f"{recorded} of {progress.total} recorded{before}, {progress.out_of_memory} out of memory, "
        f"{progress.failed} failed"
    )


def progress_view(progress: Progress) -> RenderableType:
    """The live display: a bar, the counts, what is measured and predicted now, the time left."""
    budget = "" if progress.budget_left is None else f", {duration(progress.budget_left)} of the budget left"
    lines = [
        Text(counts_line(progress)),
        Text(f"measuring   {progress.measuring or '-'}"),
        Text(f"predicting  {', '.join(progress.predicting) or '-'}", style="dim"),
        Text(f"time left   {duration(progress.seconds_left)}{budget}"),
    ]
    if progress.last:
        lines.append(Text(f"last        {progress.last}", style="dim"))
    return Group(
        ProgressBar(total=max(1, progress.total), completed=progress.already + progress.done, width=60),
        *lines,
    )


class Display:
    """Shows a campaign's progress on standard error: live on a terminal, one line a finished case
    elsewhere.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or make_console(sys.stderr)
        self._live = (
            Live(console=self._console, refresh_per_second=4, transient=True)
            if self._console.is_terminal
            else None
        )
        self._shown = -1

    def __enter__(self) -> Callable[[Progress], None]:
        if self._live is not None:
            self._live.__enter__()
        return self.update

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, value, trace)

    def update(self, progress: Progress) -> None:
        """Show the new state: in place on a terminal, else one line for each finished case."""
        if self._live is not None:
            self._live.update(progress_view(progress))
        elif progress.done != self._shown:
            self._shown = progress.done
            if progress.last:
                position = progress.already + progress.done
                self._console.print(
                    f"[{position}/{progress.total}] {progress.last}, {duration(progress.seconds_left)} left"
                )


def summary_lines(summary: Summary) -> list[RenderableType]:
    """What is left on the screen at the end."""
    progress = summary.progress
    lines: list[RenderableType] = [Text(f"{counts_line(progress)}: {summary.folder}", style="bold")]
    if summary.stopped and progress.missing:
        lines.append(
            Text(
                f"stopped: {summary.stopped}; {progress.missing} cases left; run the same command to continue"
            )
        )
    lines += [Text(f"note: {note}", style="dim") for note in summary.notes]
    lines += [Text(f"skipped: {problem}", style="dim") for problem in summary.problems]
    return lines
