"""memplan dry-run -- COMMAND: the training program itself on torch's CUDA build, where there is no GPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from memplan.cli.options import HELP
from memplan.cli.output import check_writable
from memplan.cli.progress import Progress
from memplan.cli.stopping import ends_like_ctrl_c
from memplan.planner.tables.errors import UsageError, shorten

EXIT_OUT_OF_MEMORY = 1
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@click.command(
    "dry-run",
    context_settings={**HELP, "ignore_unknown_options": False},
    short_help="Run the training program itself without a GPU, and see what it allocates.",
)
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...")
@click.option(
    "--gpu",
    metavar="NAME|SIZE",
    help="The GPU to play. Default: an Ampere GPU whose memory does not run out.",
)
@click.option(
    "--gpus", type=click.IntRange(1, 16), default=1, show_default=True, metavar="N", help="How many of them."
)
@click.option(
    "--python", metavar="PATH", help="The interpreter, with a CUDA build of torch. Default: the running one."
)
@click.option(
    "--timeout",
    default="10m",
    show_default=True,
    metavar="TIME",
    help="End the program after 90s, 10m or 1h.",
)
@click.option(
    "--steps",
    type=click.IntRange(0, 1000),
    default=2,
    show_default=True,
    metavar="N",
    help="Stop after N optimizer steps; 0: let it end by itself.",
)
@click.option(
    "--random-weights", is_flag=True, help="from_pretrained builds from the config alone: no download."
)
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write torch's memory snapshot for its own viewer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(
    words: tuple[str, ...],
    gpu: str | None,
    gpus: int,
    python: str | None,
    timeout: str,
    steps: int,
    random_weights: bool,
    snapshot: Path | None,
    as_json: bool,
) -> int:
    """Run COMMAND, unmodified, on torch's CUDA build over stub libraries that compute nothing.

    PyTorch decides every allocation on the host, so it asks for what it would ask a GPU for. Stops after a
    few optimizer steps. Running out of memory is a result (exit code 1). This is not a GPU measurement.

    For example: `memplan dry-run --gpu rtx-4090 -- python train.py --config my.yaml`
    """
    from memplan.planner.tables.gpus import find_gpu
    from memplan.profiler.dryrun.build import check_machine
    from memplan.profiler.dryrun.rehearse import ProgramFailed, Rehearsal, rehearse

    check_machine()
    seconds = parse_time(timeout)
    if snapshot is not None:
        check_writable(snapshot)
    found = find_gpu(gpu) if gpu else None
    request = Rehearsal(words, found, gpus, python, seconds, steps, random_weights, snapshot)
    try:
        with ends_like_ctrl_c(), Progress("dry run", as_json) as progress:
            done = rehearse(request, lambda text: progress(text or "starting"))
    except ProgramFailed as failed:
        print(failed.output, file=sys.stderr)
        raise
    if as_json:
        from memplan.render.json import write

        write(done.to_document())
    else:
        from memplan.render.console import show
        from memplan.render.dry_run import dry_run_screen

        show(*dry_run_screen(done))
    return 0 if done.fits else EXIT_OUT_OF_MEMORY


def parse_time(text: str) -> float:
    """Seconds of '90', '90s', '10m' or '1h'. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= 7 * 24 * 3600:
        raise UsageError(f"--timeout {shorten(text)}: expected a time such as 90s, 10m or 1h")
    return seconds
