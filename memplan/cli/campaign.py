"""memplan campaign FILE --out DIR: many profiles, each in its own process, resumable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from memplan.cli.options import HELP, PYTHON, dry_options
from memplan.cli.stopping import ends_like_ctrl_c
from memplan.planner.tables.errors import UsageError, shorten, tidy


@click.command("campaign", context_settings=HELP, short_help="Run many profiles from a file; resumable.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder for the records. Cases recorded there are not run again.",
)
@click.option(
    "--budget",
    metavar="TIME",
    help="Stop cleanly after this time (25m, 570s); run the same command to continue.",
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also append each record to this JSON Lines file.",
)
@click.option("--unpack", is_flag=True, help="Unpack FILE, an archive, into DIR; run nothing.")
@click.option("--device", metavar="NAME", help="cuda, cpu or dry; overrides the file.")
@PYTHON
@click.option("--only", metavar="TEXT", help="Run only the cases whose names contain TEXT.")
@click.option(
    "--retry-errors",
    is_flag=True,
    help="Retry cases that ended in an error (not those that ran out of memory).",
)
@click.option(
    "--rehearse",
    is_flag=True,
    help="Dry-run every case with a tiny model on the CPU to check the file.",
)
@click.option("--list", "list_cases", is_flag=True, help="List the cases and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(
    file: Path,
    out: Path,
    budget: str | None,
    archive: Path | None,
    unpack: bool,
    device: str | None,
    python: str | None,
    only: str | None,
    retry_errors: bool,
    rehearse: bool,
    list_cases: bool,
    as_json: bool,
) -> int:
    """Measure every case of FILE that has no record in DIR yet, one at a time, each in its own process.

    Each record is on disk before the next case starts, so an interrupted campaign continues with the same
    command.
    """
    if unpack:
        return _unpack(file, out, as_json)
    from memplan.profiler import case_matrix

    cases = case_matrix.read(file, device)
    if only:
        chosen = tuple(case for case in cases.cases if only in case.name)
        if not chosen:
            raise UsageError(
                f"no case of {file} has '{only}' in its name; to list them: memplan campaign {file} "
                f"--out {out} --list"
            )
        cases = case_matrix.CaseList(cases.name, cases.device, chosen)
    if rehearse:
        from memplan.profiler.rehearsal import rehearsal

        cases = rehearsal(cases)
    if list_cases:
        return _list(cases, as_json)
    seconds = case_matrix.parse_duration(budget) if budget else None
    from memplan.profiler.campaign import run
    from memplan.render.campaign import Display, summary_lines

    place = dry_options(cases, python)
    with ends_like_ctrl_c(), Display() as listen:
        summary = run(
            cases, out, budget=seconds, archive=archive, retry_errors=retry_errors, listen=listen, **place
        )
    progress = summary.progress
    if as_json:
        counts = {
            key: getattr(progress, key)
            for key in ("total", "already", "done", "failed", "out_of_memory", "missing")
        }
        problems = list(summary.problems)
        _write(
            {
                "records": [str(path) for path in summary.records],
                **counts,
                "stopped": summary.stopped,
                "problems": problems,
            }
        )
    else:
        from memplan.render.console import show

        show(*summary_lines(summary))
    return 130 if summary.stopped == "interrupted" else 0


def _unpack(archive: Path, out: Path, as_json: bool) -> int:
    from memplan.profiler.archive import unpack
    from memplan.profiler.files import make_folder

    written, problems = unpack(archive, make_folder(out))
    for problem in problems:
        print(f"memplan: skipped: {tidy(problem)}", file=sys.stderr)
    if as_json:
        _write({"records": [str(path) for path in written], "problems": problems})
    else:
        print(f"{len(written)} records written into {out}")
    return 0


def _list(cases: Any, as_json: bool) -> int:
    if as_json:
        rows = [
            {"name": c.name, "model": c.model, "setup": c.setup.to_document(), "cap_bytes": c.cap_bytes}
            for c in cases.cases
        ]
        _write({"cases": rows})
    else:
        for number, case in enumerate(cases.cases, 1):
            print(f"{number:4d}  {shorten(case.name, 100)}")
    return 0


def _write(document: dict[str, Any]) -> None:
    from memplan.planner import __version__
    from memplan.render.json import write

    write({"schema": "memplan.campaign/1", "memplan_version": __version__, **document})
