"""memplan profile MODEL: predict, then run real steps on this machine's GPU (or CPU) in a process of its own,
and compare.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memplan.cli.completion import completes
from memplan.cli.options import DRY, HELP, PYTHON, check_python, dry_options, plan_options
from memplan.cli.progress import Progress
from memplan.cli.stopping import ends_like_ctrl_c
from memplan.cli.subject import Subject, read_subject
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.progress import tell
from memplan.planner.tables.units import parse_size

if TYPE_CHECKING:
    from memplan.profiler.campaign import Progress as CampaignProgress

DEADLINE = 1800.0
EXIT_OUT_OF_MEMORY = 1


@click.command(
    "profile",
    context_settings=HELP,
    short_help="Run real training steps on this machine and record a measurement.",
)
@click.argument("model", shell_complete=completes("model"))
@plan_options
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    metavar="N",
    help="Number of measured steps, after warm-up.",
)
@click.option(
    "--cap",
    metavar="SIZE",
    help="Limit the allocator to simulate a smaller GPU (24GiB). The CUDA context comes on top.",
)
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a memory snapshot for PyTorch's viewer.",
)
@click.option("--save", is_flag=True, help="Save the record under measurements/<gpu>/.")
@click.option(
    "--ops",
    "audit",
    is_flag=True,
    help="Instead, run every traced op on real tensors and list workspaces that the trace misses.",
)
@PYTHON
def command(
    model: str,
    as_json: bool,
    steps: int,
    cap: str | None,
    snapshot: Path | None,
    save: bool,
    audit: bool,
    python: str | None,
    **options: Any,
) -> int:
    """Run a few real training steps of MODEL with random weights, and compare them with the prediction.

    Nothing is downloaded. Running out of memory is a result (exit code 1), not a crash. `--device dry` takes
    the same steps on torch's CUDA build where there is no GPU, and is never counted as a GPU measurement.
    """
    dry = options.get("device") == DRY
    check_python(python, options.get("device") or "cuda")
    if dry and audit:
        raise UsageError("--ops runs kernels on real tensors: it goes with --device cuda or cpu, not dry")
    options.update(load=options.get("load") or "random", device="cuda" if dry else options.get("device"))
    subject = read_subject(model, options)
    if audit:
        return _audit(subject, as_json)
    where = DRY if dry else subject.setup.device
    with Progress("profile", as_json):
        measurement = measure(subject, steps, parse_size(cap) if cap else None, snapshot, where, python)
    saved = _save(measurement) if save else None
    if as_json:
        from memplan.render.json import write

        write(measurement.to_document())
    else:
        from memplan.render.console import show
        from memplan.render.profile import profile_screen

        show(*profile_screen(measurement, saved))
    if measurement.outcome == "error":
        raise UsageError(
            f"the run failed: {measurement.failure.message if measurement.failure else 'no reason recorded'}"
        )
    return EXIT_OUT_OF_MEMORY if measurement.outcome == "oom" else 0


def measure(
    subject: Subject,
    steps: int,
    cap: int | None,
    snapshot: Path | None,
    where: str,
    python: str | None = None,
) -> Any:
    """The record of one case, measured as a campaign of one. `where`: cuda, cpu or dry."""
    from memplan.profiler.campaign import run
    from memplan.profiler.case_matrix import Case, CaseList
    from memplan.profiler.environment import require
    from memplan.profiler.record import load

    if where != DRY:
        require()
    if snapshot is not None:
        _check_snapshot(snapshot, subject.setup.device)
    found, setup = subject.model, subject.setup
    name = f"{found.name} {setup.method} b{setup.micro_batch} s{setup.sequence_length}"
    case = Case(
        name,
        found.name,
        found.config,
        setup,
        steps,
        cap,
        DEADLINE,
        str(snapshot.resolve()) if snapshot else None,
    )
    with ends_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="memplan-") as folder:
        cases, began = CaseList("profile", where, (case,)), time.monotonic()

        def listen(progress: CampaignProgress) -> None:
            tell(doing(progress, time.monotonic() - began))

        summary = run(cases, Path(folder), listen=listen, **dry_options(cases, python))
        if not summary.records:
            raise KeyboardInterrupt
        return load(summary.records[0])


def doing(progress: CampaignProgress, seconds: float) -> str:
    """Which case is being predicted or measured, and for how long in all."""
    if progress.measuring:
        return f"measuring {progress.measuring}, {seconds:.0f} s"
    if progress.predicting:
        return f"predicting {', '.join(progress.predicting)}, {seconds:.0f} s"
    return f"{seconds:.0f} s"


def _check_snapshot(path: Path, device: str) -> None:
    if device == "cpu":
        raise UsageError("--snapshot writes the CUDA allocator's snapshot: the CPU has none")
    if not os.access(path.resolve().parent, os.W_OK):
        raise UsageError(f"cannot write the snapshot {path}: its folder does not exist or is not writable")


def _save(measurement: Any) -> Path:
    from memplan.profiler.files import make_folder
    from memplan.profiler.naming import folder_of
    from memplan.profiler.record import save_in

    return save_in(measurement, make_folder(Path("measurements") / folder_of(measurement.environment)))


def _audit(subject: Subject, as_json: bool) -> int:
    from memplan.profiler.environment import require
    from memplan.profiler.isolate import Isolation
    from memplan.render.profile import audit_lines

    require()
    arguments = {
        "config": subject.model.config,
        "setup": subject.setup.to_document(),
        "name": subject.model.name,
    }
    with ends_like_ctrl_c(), Progress("profile", as_json), Isolation() as isolation:
        tell("running every traced op on real tensors")
        report = isolation.run("memplan.profiler.ops:audit", arguments, deadline=DEADLINE)
    if report.outcome != "ok":
        raise UsageError(f"the op audit failed: {report.message}")
    if as_json:
        from memplan.render.json import write

        write(report.result)
    else:
        from memplan.render.console import show

        show(*audit_lines(report.result))
    return 0
