"""memplan MODEL: predict one setup, print the first screen or the document."""

from __future__ import annotations

import sys
from typing import Any

import click

from memplan import api
from memplan.cli.options import plan_options
from memplan.cli.subject import Subject, read_subject
from memplan.planner.answers.fit.suggest import Suggestion, suggest
from memplan.planner.answers.verdict import needs_expandable
from memplan.planner.inputs.models import Model
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.gpus import Gpu, find_gpu

EXIT_DOES_NOT_FIT = 1


@click.command("plan", short_help="Predict the memory that a run needs (the default command).")
@click.argument("model")
@click.argument("extra", nargs=-1, metavar="")
@plan_options
@click.option(
    "--explain", is_flag=True, help="Show every tensor with its shape, dtype, count, bytes and reason."
)
def command(model: str, extra: tuple[str, ...], explain: bool, as_json: bool, **options: Any) -> int:
    """Predict how much GPU memory MODEL needs under one setup, and where every byte goes.

    MODEL: a name (memplan list models), a Hugging Face id, a folder, a config.json, or a training
    configuration file.
    """
    if extra:
        raise UsageError(
            f"expected one MODEL, found '{shorten(model)}' and '{shorten(extra[0])}'; a command such "
            "as compare comes first"
        )
    return answer(read_subject(model, options), options["engine"], explain, as_json)


def answer(subject: Subject, engine: str | None, explain: bool, as_json: bool) -> int:
    """Predict, print, and return the exit code: what `plan` does once its subject is known."""
    found, setup = subject.model, subject.setup
    prediction = subject.annotate(api.predict(found, setup, engine))
    gpu = find_gpu(setup.gpu) if setup.gpu else None
    if as_json:
        from memplan.render.json import write

        write(prediction.to_document(explain))
    else:
        print_screen(prediction, gpu, help_with(found, prediction, gpu), explain)
    return exit_code(prediction, gpu)


def help_with(found: Model, prediction: Prediction, gpu: Gpu | None) -> tuple[Suggestion, ...]:
    """Three changes that would help; none where the formula lacks the family (the trace does not need it)."""
    if prediction.setup.method == "inference":
        return ()
    try:
        return suggest(found.spec(), prediction.setup, prediction, gpu)
    except UsageError:
        if prediction.engine == "formula":
            raise
        return ()


def print_screen(
    prediction: Prediction, gpu: Gpu | None, suggestions: tuple[Suggestion, ...], explain: bool
) -> None:
    """The first screen on standard output, with every row where asked."""
    from memplan.render.console import make_console, show
    from memplan.render.terminal import plan_screen

    console = make_console()
    parts = plan_screen(prediction, gpu, suggestions, console.width, console.options.ascii_only)
    if explain:
        from memplan.render.explain import explain_rows

        parts += ["", *explain_rows(prediction)]
    show(*parts, console=console)


def _tight(prediction: Prediction, gpu: Gpu) -> str:
    if needs_expandable(prediction, gpu):
        return (
            "fits only with PYTORCH_ALLOC_CONF=expandable_segments:True; without it, the run is out "
            "of memory even after the allocator releases its cache"
        )
    if prediction.smallest_capacity_bytes is not None:
        return (
            "the allocator has to release its cache and retry, which is slow; expandable segments would help"
        )
    return "the prediction is within its own margin of the usable memory; expandable segments would help"


def exit_code(prediction: Prediction, gpu: Gpu | None) -> int:
    """1 where the GPU named is too small; 0 otherwise, with a warning on standard error where it is tight."""
    if gpu is None:
        return 0
    verdict = prediction.gpus[0]
    if verdict.verdict == "tight":
        print(f"memplan: tight on {verdict.name}: {_tight(prediction, gpu)}", file=sys.stderr)
    return EXIT_DOES_NOT_FIT if verdict.verdict == "no" else 0
