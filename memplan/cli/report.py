"""memplan report MODEL -o FILE.html: a self-contained page; --png and --svg for its two main pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from memplan import api
from memplan.cli.completion import completes
from memplan.cli.options import HELP, lengths_option, setup_options
from memplan.cli.output import check_writable, write_file
from memplan.cli.plan import exit_code
from memplan.cli.progress import Progress
from memplan.cli.subject import Subject, read_subject
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.gpus import Gpu, common_gpus, find_gpu
from memplan.render.lengths import lengths_lines


@click.command(
    "report", context_settings=HELP, short_help="Write a self-contained HTML page, or its pictures."
)
@click.argument("model", shell_complete=completes("model"))
@setup_options
@lengths_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE.html", help="File to write the page to."
)
@click.option(
    "--measurement",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="A recorded run of this setup to draw beside the prediction.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Write the pictures as PNG instead (extra: plot).",
)
@click.option(
    "--svg",
    type=click.Path(path_type=Path),
    metavar="FILE.svg",
    help="Write the pictures as SVG instead (extra: plot).",
)
def command(
    model: str,
    output: Path | None,
    measurement: Path | None,
    png: Path | None,
    svg: Path | None,
    **options: Any,
) -> int:
    """Write one self-contained HTML page about MODEL: verdict, components, moments, methods, what fits and
    every tensor. It works from file://, loads nothing, and its sliders recompute everything in the page. For
    the numbers as JSON, run memplan MODEL --json.

    Exit code 1: the setup does not fit the GPU given with --gpu; the page is still written.
    """
    if output is None and png is None and svg is None:
        raise UsageError("report needs an output file: -o page.html, --png picture.png or --svg picture.svg")
    subject = read_subject(model, options)
    if api.unknown_family(subject.model):
        raise UsageError(
            "a page computes its sliders from the formula's expressions, and the formula has no rule for "
            f"model_type '{subject.model.config.get('model_type')}': memplan {subject.model.typed or model} "
            "--explain has every tensor, fit what fits a GPU"
        )
    for path in (path for path in (output, png, svg) if path is not None):
        check_writable(path)
    named = subject.setup.gpu is not None
    with Progress("report"):
        subject, gpu = on_a_card(subject)
        prediction = _predict(subject, options["engine"])
        text = None if output is None else _page(subject, prediction, gpu, measurement, model)
    if output is not None and text is not None:
        write_file(output, text)
        click.echo(f"wrote {shorten(str(output))}", err=True)
    if png is not None or svg is not None:
        from memplan.render.pictures import draw

        for path in (path for path in (png, svg) if path is not None):
            write_file(path, draw(subject.model.spec(), subject.setup, prediction, gpu, path))
            click.echo(f"wrote {shorten(str(path))}", err=True)
    return exit_code(prediction, gpu if named else None, options["strict"])


def _predict(subject: Subject, engine: str | None = None) -> Prediction:
    prediction = subject.annotate(subject.predict(subject.setup, engine))
    lengths = lengths_lines(prediction.extra.get("lengths"), subject.setup.allocator)
    said = [f"{head.lower()} {text}: the page is of the longest batch alone" for head, text in lengths]
    return prediction.with_(warnings=(*said, *prediction.warnings))


def page_of(subject: Subject) -> str:
    """The page of one subject as `memplan ui` serves it: what it does not hold the server is asked for."""
    subject, gpu = on_a_card(subject)
    return _page(subject, _predict(subject), gpu, served=True)


def _page(
    subject: Subject,
    prediction: Prediction,
    gpu: Gpu,
    measurement: Path | None = None,
    typed: str | None = None,
    served: bool = False,
) -> str:
    """`typed`: what a person typed for the model, or for a training file that names one; `served`: by
    memplan ui.
    """
    from memplan.render.html import page

    return page(
        subject.model.spec(),
        subject.setup,
        prediction,
        gpu,
        _measured(measurement),
        model=typed if typed and subject.imported is None else subject.model.typed,
        wide=not served,
        served=served,
    )


def on_a_card(subject: Subject) -> tuple[Subject, Gpu]:
    """The subject on the GPU that was named, else on the smallest common one that holds the setup, else on
    the largest.
    """
    if subject.setup.gpu is not None:
        return subject, find_gpu(subject.setup.gpu)
    from memplan.planner.answers.fit.gpus import choose_cards
    from memplan.planner.answers.fit.kernels import cannot_run

    cards = choose_cards(subject.model.spec(), subject.setup, missing=subject.not_modelled)
    chosen = cards.smallest or cards.at_least
    spec, setup = subject.model.spec(), subject.setup
    able = [gpu for gpu in common_gpus() if cannot_run(spec, setup, gpu) is None]
    gpu = find_gpu(chosen) if chosen else (able or common_gpus())[-1]
    return replace(subject, setup=subject.setup.with_(gpu=gpu.name)), gpu


def _measured(path: Path | None) -> dict[str, int] | None:
    """Allocated bytes by moment of a recorded run."""
    if path is None:
        return None
    from memplan.planner.inputs.jsonfile import read_json

    document = read_json(path, infinity=False)
    if not str(document.get("schema", "")).startswith("memplan.measurement/1"):
        raise UsageError(
            f"'{shorten(str(path))}' is not a measurement that this version can read: expected "
            "schema memplan.measurement/1"
        )
    moments = document.get("moments")
    entries = [moment for moment in moments if isinstance(moment, dict)] if isinstance(moments, list) else []
    pairs = ((moment.get("name"), moment.get("allocated_bytes")) for moment in entries)
    found = {str(name): size for name, size in pairs if isinstance(size, int) and size > 0}
    if not found:
        raise UsageError(
            f"'{shorten(str(path))}' has no moments with sizes: a run that failed cannot be drawn"
        )
    return found
