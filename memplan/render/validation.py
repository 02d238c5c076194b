"""Accuracy as tables: tiers first, then the worst runs first, then groups. The same numbers as Markdown for
docs/accuracy.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memplan.planner.tables.units import gib
from memplan.validate.accuracy import Stats, TierResult, Validation, grouped, stats, worst_first
from memplan.validate.evidence import Run
from memplan.validate.reconcile import Reconciliation

if TYPE_CHECKING:
    from memplan.validate.published import Score

ABSENT = "-"
Line = tuple[str, ...]
HEAD: Line = ("runs", "median", "P95", "worst", "bias", "within 1 MiB")


def percent(value: float | None, sign: bool = False) -> str:
    """A fraction as a percentage with two decimals; a dash for None."""
    if value is None:
        return ABSENT
    shown = round(100 * value, 2) or 0.0  # no minus before a zero
    return f"{shown:+.2f} %" if sign and shown else f"{shown:.2f} %"


def stat_cells(s: Stats) -> Line:
    """The cells of one line of statistics: runs, median, P95, worst, bias, and the share within 1 MiB."""
    return (
        str(s.runs),
        percent(s.median),
        percent(s.p95),
        percent(s.worst),
        percent(s.bias, True),
        percent(s.within_1_mib) if s.runs else ABSENT,
    )


def tier_lines(validation: Validation) -> Iterator[Line]:
    """Each tier: what it promises, what was found, whether it is kept."""
    yield from _results(validation.tiers)
    for engine in dict.fromkeys(run.engine for run in validation.runs):
        v = validation.verdicts(engine)
        kept = "no run" if v.kept is None else "kept" if v.kept else "BROKEN"
        found = f"{v.right} right, {v.false_fits} false fits, {v.false_no} false no, {v.tight} tight"
        yield ("C", f"{engine}, verdict", "no false fits, 1 % false no", found, *[""] * 4, kept)


def _results(results: Iterable[TierResult]) -> Iterator[Line]:
    for result in results:
        t = result.tier
        promise = f"{percent(t.median)} / {percent(t.p95)} / {percent(t.worst)}"
        kept = "no run" if result.kept is None else "kept" if result.kept else "BROKEN"
        yield (t.name, f"{t.engine}, {t.what}", promise, *stat_cells(result.stats)[:5], kept)


def dry_lines(validation: Validation) -> list[Line]:
    """The tier of dry runs; empty without one."""
    return list(_results(validation.dry_tiers))


TIER_HEAD: Line = ("tier", "what", "target: median / P95 / worst", *HEAD[:5], "")
RUN_HEAD: Line = ("run", "engine", "predicted", "measured", "error", "device", "unexplained", "")


def run_lines(runs: Sequence[Reconciliation]) -> Iterator[Line]:
    """One line per run, the largest error first."""
    for run in worst_first(runs):
        allocated, device = run.tiers.get("allocated"), run.tiers.get("device")
        yield (
            run.case,
            run.engine,
            gib(allocated.predicted) if allocated else ABSENT,
            gib(allocated.measured) if allocated else run.outcome,
            percent(run.error, True),
            percent(device.error, True) if device else ABSENT,
            gib(run.unexplained_bytes) if run.unexplained_bytes is not None else ABSENT,
            " ".join(
                filter(
                    None,
                    (
                        "development" if run.development else "",
                        "dry run" if run.dry else "",
                        run.verdict if run.verdict != "unknown" else "",
                    ),
                )
            ),
        )


def group_lines(runs: Sequence[Reconciliation]) -> Iterator[tuple[str, list[Line]]]:
    """For each grouping (method, model, GPU, ...) the lines of its groups, the largest error first."""
    for name, groups in grouped(runs).items():
        if groups:
            yield (
                name,
                [
                    (key, *stat_cells(s))
                    for key, s in sorted(groups.items(), key=lambda item: -(item[1].worst or 0))
                ],
            )


def development_lines(validation: Validation) -> list[Line]:
    """The errors on the development set, by engine and kind of memory."""
    runs = [run for run in validation.runs if run.development]
    return [
        (
            f"{engine}, {what}",
            *stat_cells(stats(r.tiers[what] for r in runs if r.engine == engine and what in r.tiers)),
        )
        for engine in dict.fromkeys(run.engine for run in runs)
        for what in ("allocated", "device")
    ]


def tables(validation: Validation, explain: bool = False) -> Iterator[RenderableType]:
    """Everything that `memplan validate` prints: tiers, runs, groups, the development set, and what was
    skipped.
    """
    yield _table("Tiers (GPU runs never used for tuning)", TIER_HEAD, tier_lines(validation))
    yield _table("Runs, worst first: allocated peak of the step", RUN_HEAD, run_lines(validation.runs))
    if lines := dry_lines(validation):
        yield _table(DRY_TITLE, TIER_HEAD, lines)
    own = [run for run in validation.runs if not run.development and not run.dry]
    for engine in dict.fromkeys(run.engine for run in own):
        for name, lines in group_lines([run for run in own if run.engine == engine]):
            if name != "engine":
                yield _table(f"{engine}, by {name}", (name, *HEAD), lines)
    if lines := development_lines(validation):
        yield _table("Development set (guided the design; never counts toward a tier)", ("", *HEAD), lines)
    if explain:
        for run in worst_first(validation.runs):
            yield from _explained(run)
    for skipped in validation.skipped:
        yield Text(f"not reconciled: {skipped.case} by {skipped.engine}: {skipped.reason}", style="yellow")


def _explained(run: Reconciliation) -> Iterator[RenderableType]:
    lines = [
        (d.moment, d.what, gib(d.predicted), gib(d.measured), percent(d.error, True)) for d in run.moments
    ]
    yield _table(f"{run.case}, {run.engine}", ("moment", "what", "predicted", "measured", "error"), lines)
    for suspect in run.suspects:
        yield Text(f"likely cause: {suspect} ({percent(suspect.share)} of the unexplained bytes)")
    for note in run.notes:
        yield Text(f"note: {note}", style="dim")
    for event in (run.alignment or {}).get("unmatched", ())[:5]:
        yield Text(
            f"only {event['only']}, {event['moment']}: {event['kind']} {event['bytes']:,} B "
            f"x{event['count']} at {event.get('where') or 'an operation without a name'}",
            style="dim",
        )


def shipped_table(runs: Sequence[Run]) -> Iterator[RenderableType]:
    """The accuracy that came with the package: one line an engine and GPU."""
    groups: dict[Line, list[float]] = {}
    for run in runs:
        if run.allocated_error is not None:
            card = (run.gpu or "CPU") + (" (development set)" if run.development else "")
            groups.setdefault((run.engine, card), []).append(abs(run.allocated_error))
    lines = []
    for (engine, card), errors in groups.items():
        ordered = sorted(errors)
        lines.append(
            (engine, card, str(len(ordered)), percent(ordered[len(ordered) // 2]), percent(ordered[-1]))
        )
    yield _table(
        "Recorded accuracy of this release: allocated peak of the step",
        ("engine", "on", "runs", "median", "worst"),
        lines,
    )


def published_table(scores: Sequence[Score]) -> Iterator[RenderableType]:
    """Predictions against published figures, one line each."""
    lines = [
        (
            s.figure.id,
            s.figure.quality,
            s.figure.metric,
            gib(s.figure.value_bytes),
            gib(s.predicted) if s.predicted is not None else ABSENT,
            percent(s.error, True),
            s.figure.source,
        )
        for s in scores
    ]
    yield _table(
        "Published figures (as rounded by their authors; never used for tuning)",
        ("figure", "quality", "metric", "published", "predicted", "error", "source"),
        lines,
    )
    for s in scores:
        if s.reason:
            yield Text(f"not predicted: {s.figure.id}: {s.reason}", style="yellow")


def _table(title: str, head: Line, lines: Iterable[Line]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), expand=False
    )
    for number, name in enumerate(head):
        table.add_column(
            name,
            justify="left" if number == 0 or name in ("what", "engine", "source", "") else "right",
            overflow="fold",
        )
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table


INTRO = """# Accuracy

Written by `memplan validate --update` from the records in `measurements/`; a test fails when this page is stale. Errors are fractions of
the measured value: median, P95 and worst are of absolute errors, bias is the mean of signed errors. Only GPU runs that were never used for
tuning count toward a tier. Bytes that no row explains stay *unexplained*.
"""


DRY_TITLE = "Dry runs (over stub libraries: no GPU measurement, in no other tier)"
DRY = """
## Dry runs

Not GPU measurements: torch's CUDA build over stub libraries ([dry-run.md](dry-run.md)). They count toward no other tier.
"""


DEVELOPMENT = """
## Development set

Runs published by others (fitcheck-llm 0.3.1, MIT: one Tesla T4, fp16, LoRA and QLoRA with checkpointing). They guided the design, so they
never count toward a tier. This repository contains only their summary.
"""


def page(validation: Validation) -> str:
    """docs/accuracy.md."""
    parts = [INTRO, "## Tiers\n", _markdown(TIER_HEAD, tier_lines(validation))]
    if lines := dry_lines(validation):
        parts += [DRY, _markdown(TIER_HEAD, lines)]
        parts += ["", _markdown(RUN_HEAD, run_lines(validation.dry))]
    own = [run for run in validation.runs if not run.development and not run.dry]
    parts += [
        "\n## Runs, worst first\n\nAllocated peak of the training step.\n",
        _markdown(RUN_HEAD, run_lines(own)),
    ]
    for engine in dict.fromkeys(run.engine for run in own):
        parts.append(f"\n## The {engine} engine, by group\n")
        for name, lines in group_lines([run for run in own if run.engine == engine]):
            if name != "engine":
                parts += [_markdown((name, *HEAD), lines), ""]
    if lines := development_lines(validation):
        parts += [DEVELOPMENT, _markdown(("", *HEAD), lines)]
    if validation.skipped:
        parts.append("\n## Not reconciled\n")
        parts += [f"* {s.case}, {s.engine}: {s.reason}" for s in validation.skipped]
    return "\n".join(parts).rstrip() + "\n"


def _markdown(head: Line, lines: Iterable[Line]) -> str:
    rows = [head, tuple("---" for _ in head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
