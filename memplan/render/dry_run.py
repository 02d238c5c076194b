"""The screen of a dry run: verdict, components by moment, the peak's line, and what it cannot see."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from memplan.planner.tables.errors import shorten
from memplan.planner.tables.units import gib
from memplan.profiler.dryrun.observation import Observation, Refused, SeenMoment, SeenRank
from memplan.profiler.dryrun.rehearse import Rehearsed
from memplan.profiler.record import MEASURED_COMPONENTS
from memplan.render.components import SPACING
from memplan.render.sentences import paragraph
from memplan.render.text import label, number
from memplan.render.words import WORDS

CANNOT_SEE = (
    "a dry run over stub libraries, not a GPU measurement. It cannot see the CUDA context (taken from the "
    "GPU table), what CUDA's libraries allocate inside themselves, time, or floating-point values."
)


def dry_run_screen(done: Rehearsed, width: int = 80) -> list[RenderableType]:
    """Everything that `memplan dry-run` prints, top to bottom."""
    found = done.observation
    parts: list[RenderableType] = [verdict(done), subject(done), Text()]
    shown = done.needed or found
    if found.refused is not None:
        parts += [paragraph("Failed", refused_sentence(found.refused))]
        if done.unbounded is not None:
            needs = done.unbounded.reserved_bytes + done.context_bytes
            parts += [
                paragraph(
                    "Needs", f"{gib(needs)} where memory does not run out: the table below is of that run."
                )
            ]
        parts.append(Text())
    parts += [moment_table(shown, done.context_bytes, width), Text()]
    parts += sentences(done, shown)
    return parts


def verdict(done: Rehearsed) -> Text:
    """'fits rtx-4090: ...' or what is needed and who has it; it says that it is a dry run."""
    found, gpu = done.observation, done.request.gpu
    used = found.reserved_bytes + done.context_bytes
    if gpu is None:
        names = ", ".join(card.name for card in done.holding()) or "no common GPU"
        return Text(f"needs {gib(used)} of GPU memory (dry run)", style="bold").append(
            f"\nholds it: {names}", "not bold"
        )
    text, style = WORDS["fits" if done.fits else "no"]
    if done.fits:
        rest = f" {gpu.name} (dry run): {gib(used)} of {gib(gpu.usable_bytes)} usable"
        rest += f", {gib(gpu.usable_bytes - used)} free"
        return Text(text, style=style).append(rest, style="not bold")
    line = Text(text, style=style).append(f" {gpu.name} (dry run): ", style="not bold")
    if done.unbounded is None:
        return line.append(f"out of memory at {gib(gpu.usable_bytes)} usable", style="not bold")
    first = next((card.name for card in done.holding()), None)
    would = f"; {first} would" if first else "; no common GPU has that"
    needed = gib(done.unbounded.reserved_bytes + done.context_bytes)
    return line.append(f"{needed} of {gib(gpu.usable_bytes)} usable{would}", style="not bold")


def subject(done: Rehearsed) -> Text:
    """The command, how far it came, with what."""
    found = done.needed or done.observation
    steps = f"{found.steps} optimizer step{'' if found.steps == 1 else 's'}"
    several = f", device {found.device} of {found.devices}" if found.devices > 1 else ""
    command = shorten(shlex.join(done.request.command), 60)
    return Text(f"{command}: {steps} in {done.seconds:.0f} s, torch {found.torch}{several}", style="dim")


def refused_sentence(refused: Refused) -> str:
    """What torch could not have, where, and what there was."""
    asked = f"{gib(refused.requested_bytes)} more" if refused.requested_bytes else "more"
    free = f", {gib(refused.free_bytes)} free" if refused.free_bytes is not None else ""
    where = f" at {place(refused.line)}" if refused.line else ""
    return (
        f"in {label(refused.moment)}{where}: asked for {asked} with {gib(refused.allocated_bytes)} "
        f"allocated, {gib(refused.reserved_bytes)} reserved{free} (torch.OutOfMemoryError)."
    )


def moment_table(found: Observation, context_bytes: int, width: int) -> Table:
    """Components by moment in GiB, as the table of a prediction; narrow screens lose blanks, decimals."""
    console = Console(width=1000)
    for blanks, digits, _ in SPACING:
        table = _moment_table(found, context_bytes, blanks, digits)
        if console.measure(table).maximum <= width:
            break
    return table


def _moment_table(found: Observation, context_bytes: int, blanks: int, digits: int) -> Table:
    moments = found.moments
    table = Table(box=None, padding=(0, blanks, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("GiB", no_wrap=True)
    for moment in moments:
        bold = "bold" if moment.name == found.peak_moment else ""
        table.add_column(label(moment.name).replace(" ", "\n"), justify="right", no_wrap=True, style=bold)
    for name in MEASURED_COMPONENTS:
        if any(_component(moment, name) for moment in moments):
            cells = [number(_component(moment, name), digits) for moment in moments]
            table.add_row(label(name), *cells)
    table.add_row("allocated", *(number(moment.allocated_bytes, digits) for moment in moments), style="bold")
    table.add_row("reserved", *(number(moment.reserved_bytes, digits) for moment in moments))
    device = [number(moment.reserved_bytes + context_bytes, digits) for moment in moments]
    table.add_row("device", *device, style="bold")
    return table


def _component(moment: SeenMoment, name: str) -> int | None:
    return moment.components.get(name, 0) if moment.components is not None else None


def sentences(done: Rehearsed, found: Observation) -> list[RenderableType]:
    """The peak's line, its largest blocks, what to know."""
    at = f", at {place(found.peak_line)}" if found.peak_line else ""
    lines = [
        (
            "Peak",
            f"in {label(found.peak_moment)}{at}: {gib(found.allocated_bytes)} allocated, "
            f"{gib(found.reserved_bytes)} reserved.",
        )
    ]
    if found.ranks:
        lines.append(("Ranks", _ranks(found.ranks)))
    if found.largest:
        blocks = "; ".join(
            f"{gib(block.nbytes)} {label(block.component)}" + (f" ({block.line})" if block.line else "")
            for block in found.largest
        )
        lines.append(("Largest", f"beside weights, gradients and states: {blocks}."))
    if found.retries:
        lines.append(("Retries", f"torch emptied its cache {found.retries} times to go on."))
    lines += [("Note", note[0].upper() + note[1:] + ".") for note in found.notes]
    lines.append(("Dry run", CANNOT_SEE))
    return [paragraph(head, text) for head, text in lines]


def _ranks(ranks: Sequence[SeenRank]) -> str:
    """What each rank reserves; the one that is shown above reserves most."""
    seen = {rank.reserved_bytes for rank in ranks}
    if len(seen) == 1 and all(rank.outcome != "oom" for rank in ranks):
        return f"all {len(ranks)} reserve the same."
    cells = (
        f"{rank.rank}: {'out of memory' if rank.outcome == 'oom' else gib(rank.reserved_bytes)}"
        for rank in ranks
    )
    return f"reserved {', '.join(cells)}; the table is of the one that needs most."


def place(line: str) -> str:
    """A source line relative to here, where it is below."""
    path, _, rest = line.partition(":")
    near = os.path.relpath(path)
    return f"{path if near.startswith('..') else near}:{rest.replace(' ', ' in ', 1)}"
