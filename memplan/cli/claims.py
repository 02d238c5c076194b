"""memplan claims [FILE]: check claims about training memory; default: the shipped ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from memplan.cli.options import HELP
from memplan.cli.progress import Progress
from memplan.planner.tables.errors import unknown


@click.command(
    "claims",
    context_settings=HELP,
    short_help="Check claims about training memory against computed evidence.",
)
@click.argument("file", required=False, type=click.Path())
@click.option(
    "--lang", type=click.Choice(("en", "zh")), default="en", show_default=True, help="Language of the output."
)
@click.option(
    "--conflicts",
    is_flag=True,
    help="Show only contradictions within or between documents, and the computed answer.",
)
@click.option("--only", metavar="ID,ID", help="Check only these claims.")
@click.option("--explain", is_flag=True, help="Show every part of every claim, with its sources.")
@click.option(
    "--measurements",
    type=click.Path(),
    metavar="DIR",
    help="Recorded runs, for claims about time. Default: ./measurements.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(
    file: str | None,
    lang: str,
    conflicts: bool,
    only: str | None,
    explain: bool,
    measurements: str | None,
    as_json: bool,
) -> None:
    """Check every claim in FILE (format: docs/claims.md) and print a computed verdict for each: supported,
    refuted, depends (with the limit) or not_checkable (with what is missing). The exit code is 0 even if a
    claim is refuted.
    """
    from memplan.validate.claims import check, check_conflict, load, to_document
    from memplan.validate.collect import recorded
    from memplan.validate.evaluation_context import EvaluationContext
    from memplan.validate.kept import open_kept

    claims = load(file)
    if only:
        wanted = [name.strip() for name in only.split(",") if name.strip()]
        have = {claim.id for claim in claims.claims}
        for name in wanted:
            if name not in have:
                raise unknown("claim", name, have)
        claims = replace(claims, claims=tuple(claim for claim in claims.claims if claim.id in wanted))
    context = EvaluationContext(
        models=claims.models, records=recorded(Path(measurements) if measurements else None)
    )
    kept = open_kept(context, claims.models)
    with Progress("claims", as_json):
        results = [] if conflicts and not as_json else check(claims, context, kept)
        kept.write()
        clashes = [check_conflict(conflict, context) for conflict in claims.conflicts] if conflicts else None
    if as_json:
        from memplan.render.json import write

        write(to_document(claims, results, clashes))
        return
    from memplan.render.claims import conflict_table, table
    from memplan.render.console import show

    show(*(conflict_table(clashes, lang) if clashes is not None else table(results, lang, explain)))
