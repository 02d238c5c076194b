"""memplan validate [PATH ...]: recorded runs reconciled with predictions; accuracy by tier."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memplan.cli.progress import Progress
from memplan.planner import __version__
from memplan.planner.tables.errors import ToleranceError, UsageError

if TYPE_CHECKING:
    from memplan.profiler.record import Measurement
    from memplan.validate.accuracy import Validation

DEFAULT = Path("measurements")


@click.command("validate", short_help="Compare recorded runs with predictions; report accuracy by tier.")
@click.argument("paths", nargs=-1, type=click.Path(), metavar="[PATH]...")
@click.option(
    "--engine",
    type=click.Choice(("formula", "trace")),
    help="Engine to compare. Default: every one available.",
)
@click.option(
    "--recorded", is_flag=True, help="Use the trace stored in each record instead of tracing again."
)
@click.option(
    "--published",
    is_flag=True,
    help="Show runs that others published against both engines; they never count toward a tier. "
    "With --update, score them anew.",
)
@click.option("--explain", is_flag=True, help="Show each run's moments, components, suspects and notes.")
@click.option("--markdown", is_flag=True, help="Print docs/accuracy.md to stdout.")
@click.option(
    "--update",
    is_flag=True,
    help="Update docs/accuracy.md and the accuracy data that ships with the package (in a checkout).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(
    paths: tuple[str, ...],
    engine: str | None,
    recorded: bool,
    published: bool,
    explain: bool,
    markdown: bool,
    update: bool,
    as_json: bool,
) -> None:
    """Compare the records in each PATH (files or folders) with predictions. Default: ./measurements, or the
    accuracy data that ships with the package.

    Exit 4 if an accuracy target is missed by GPU runs that were never used for tuning.
    """
    if published:
        _published(engine, as_json, update)
        return
    if not paths and not DEFAULT.is_dir():
        _shipped(as_json)
        return
    from memplan.validate.accuracy import Validation, to_document
    from memplan.validate.collect import ENGINES, read_records, reconcile_all

    if "" in paths:
        raise UsageError("PATH is empty: expected a record or a folder of records")
    measurements = read_records([Path(path) for path in paths] or [DEFAULT])
    runs, skipped = reconcile_all(
        measurements, (engine,) if engine else ENGINES, "record" if recorded else "here"
    )
    validation = Validation(tuple(runs), tuple(skipped))
    if update:
        _update(validation, measurements)
    if as_json:
        from memplan.render.json import write

        write(to_document(validation))
    elif markdown:
        from memplan.render.validation import page

        click.echo(page(validation), nl=False)
    elif not update:
        from memplan.render.console import show
        from memplan.render.validation import tables

        show(*tables(validation, explain))
    if not validation.kept:
        raise ToleranceError(f"accuracy target missed: {', '.join(_missed(validation, ENGINES))}")


def _missed(validation: Validation, engines: Iterable[str]) -> list[str]:
    """The names of the tiers whose targets were missed."""
    return [
        *(r.tier.name for r in validation.tiers if r.kept is False),
        *(f"{r.tier.name} ({r.tier.what})" for r in validation.dry_tiers if r.kept is False),
        *(f"C ({engine})" for engine in engines if validation.verdicts(engine).kept is False),
    ]


def _shipped(as_json: bool) -> None:
    from memplan.validate.evidence import SHIPPED, read

    runs = read()
    if not runs:
        raise UsageError(
            "no PATH given, no ./measurements folder, and no accuracy data in this package: record "
            "runs with memplan profile --save"
        )
    if as_json:
        import json

        from memplan.render.json import write

        write(
            {
                "schema": "memplan.validation/1",
                "memplan_version": __version__,
                **{
                    key: value
                    for key, value in json.loads(SHIPPED.read_text(encoding="utf-8")).items()
                    if key != "schema"
                },
            }
        )
        return
    from memplan.render.console import show
    from memplan.render.validation import shipped_table

    show(*shipped_table(runs))


def _published(engine: str | None, as_json: bool, update: bool) -> None:
    """What ships, or with `update` all of it scored anew first."""
    from memplan.render import published as picture
    from memplan.validate import published_outcomes, scored_runs
    from memplan.validate.published import published_runs

    if update:
        _score_published()
    found = (
        published_runs(),
        scored_runs.shipped(),
        published_outcomes.shipped(),
        published_outcomes.outcomes(),
    )
    if as_json:
        from memplan.render.json import write

        write(picture.to_document(*found, engines=(engine,) if engine else scored_runs.ENGINES))
    elif not update:
        from memplan.render.console import show

        show(*picture.tables(*found))


def _score_published() -> None:
    """Both engines on every published run; then the verdicts, which the errors of the former widen; then the
    page.
    """
    from memplan.cli.output import write_file
    from memplan.planner.tables import reserved_errors
    from memplan.render.published import with_section
    from memplan.validate import published_evidence, published_outcomes, published_scores

    page = Path("docs") / "accuracy.md"
    if not page.is_file():
        raise UsageError("--update writes to docs/ in a checkout: run it from the repository root")
    with Progress("validate"):
        runs = published_scores.update()
        rows = published_evidence.reserved_rows(runs)
        write_file(reserved_errors.SHIPPED, reserved_errors.document(rows))
        reserved_errors.reserved_errors.cache_clear()
        published_outcomes.update()
    write_file(page, with_section(page.read_text(encoding="utf-8")))


def _update(validation: Validation, measurements: list[Measurement]) -> None:
    from memplan.cli.output import write_file
    from memplan.render.validation import page
    from memplan.validate.evidence import runs_of, write

    docs = Path("docs")
    if not docs.is_dir():
        raise UsageError("--update writes to docs/ in a checkout: run it from the repository root")
    write([run for run in runs_of(measurements, validation.runs) if not run.development])
    write_file(docs / "accuracy.md", page(validation))
