"""memplan compare MODEL: methods side by side; memplan compare A B: two training files, what differs and
which bytes it explains.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from memplan import api
from memplan.cli.completion import completes
from memplan.cli.options import HELP, lengths_option, plan_options
from memplan.cli.progress import Progress
from memplan.cli.subject import Subject, read_subject
from memplan.planner import __version__
from memplan.planner.inputs.models import Model
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu

EXIT_DOES_NOT_FIT = 1


@click.command("compare", context_settings=HELP, short_help="Compare methods side by side, or two setups.")
@click.argument("model", shell_complete=completes("model"))
@click.argument("other", required=False, shell_complete=completes("model"))
@plan_options
@lengths_option
@click.option(
    "--tasks",
    type=click.IntRange(1, 10**6),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of tasks to store results for.",
)
@click.option("--explain", is_flag=True, help="Show precision, computation and merging as well.")
@click.option("--methods", metavar="A,B,...", help="Methods to compare. Default: full,lora,adalora,qlora.")
@click.option(
    "--largest-model", is_flag=True, help="With --gpu: also the largest catalog model that fits, per method."
)
def command(
    model: str,
    other: str | None,
    as_json: bool,
    tasks: int,
    methods: str | None,
    largest_model: bool,
    **options: Any,
) -> int:
    """Compare full fine-tuning, LoRA, AdaLoRA and QLoRA (and the method of --method or of the training file)
    on MODEL: trained parameters, precision, memory by component, storage per task, computation, and what
    merging needs.

    With two arguments (models or training files): how they differ, and how many bytes each difference
    explains. Exit code 1: with --gpu, nothing compared fits.
    """
    subject = read_subject(model, options)
    if other is not None:
        return _pair(subject, read_subject(other, options), options["engine"], as_json, options["strict"])
    from memplan.planner.answers.compare import METHODS_COMPARED, columns, compare_document

    gpu = find_gpu(subject.setup.gpu) if subject.setup.gpu else None
    if largest_model and gpu is None:
        raise UsageError("--largest-model needs a GPU: --gpu NAME")
    names = METHODS_COMPARED if methods is None else _names(methods)
    asked = [subject.setup.method] if methods is None or options["method"] is not None else []
    error = api.recorded_accuracy("formula").margin

    def predict(setup: Setup) -> Prediction:
        return subject.bounded(subject.predict(setup, options["engine"]))

    with Progress("compare", as_json):
        found = columns(
            None if api.traced_alone(subject.model, subject.setup) else subject.model.spec(),
            subject.setup,
            predict,
            dict.fromkeys((*names, *asked)),
            gpu,
            error,
            largest_model,
        )
    if all(column.prediction is None for column in found):
        raise UsageError(found[0].error or "no method could be predicted")
    if as_json:
        from memplan.render.json import write

        write(compare_document(subject.model.name, found, tasks))
    else:
        from memplan.render.compare import compare_screen
        from memplan.render.console import make_console, show

        console = make_console()
        show(
            *compare_screen(
                subject.model.name, subject.setup, found, tasks, gpu, console.width, options["explain"]
            ),
            console=console,
        )
    return _exit_code(
        (column.prediction for column in found if column.prediction is not None), options["strict"]
    )


def _names(methods: str) -> list[str]:
    """The names of --methods. Raises UsageError where there is none."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise UsageError("--methods is empty: expected names such as full,lora,qlora (memplan list methods)")
    return names


def _exit_code(predictions: Iterable[Prediction], strict: bool) -> int:
    """1 where a GPU was named and no prediction for it says that it fits or may; with `strict`, that it
    fits.
    """
    verdicts = [
        prediction.gpus[0].verdict
        for prediction in predictions
        if prediction.setup.gpu is not None and prediction.gpus
    ]
    return EXIT_DOES_NOT_FIT if verdicts and all(v == "no" or strict and v != "fits" for v in verdicts) else 0


def _pair(first: Subject, second: Subject, engine: str | None, as_json: bool, strict: bool) -> int:
    from memplan.planner.answers.compare import SCHEMA, components_of, differences

    engine = engine or (
        "trace" if first.setup.adapter is not None or second.setup.adapter is not None else "formula"
    )
    with Progress("compare", as_json):
        one, two = (subject.annotate(subject.predict(subject.setup, engine)) for subject in (first, second))
        known = {
            (id(first.model), first.setup.identity()): one,
            (id(second.model), second.setup.identity()): two,
        }

        def device_bytes(setup: Setup, model: Model = first.model) -> int:
            key = (id(model), setup.identity())
            if key not in known:
                known[key] = api.predict(model, setup, engine)
            return known[key].peak.device_bytes

        target = second.setup
        found = differences(first.setup, target, device_bytes)
        model_bytes = 0
        if first.model.config != second.model.config:
            model_bytes = device_bytes(target, second.model) - device_bytes(target)
    if as_json:
        from memplan.render.json import write

        write(
            {
                "schema": SCHEMA,
                "memplan_version": __version__,
                "first": _side(one),
                "second": _side(two),
                "differences": [difference.to_document() for difference in found],
                "model_bytes": model_bytes,
                "components": {"first": components_of(one), "second": components_of(two)},
            }
        )
    else:
        from memplan.render.compare import pair_screen
        from memplan.render.console import show

        files = tuple(subject.imported.source if subject.imported else "" for subject in (first, second))
        show(*pair_screen(one, two, found, model_bytes, (files[0], files[1])))
    return _exit_code((one, two), strict)


def _side(prediction: Prediction) -> dict[str, Any]:
    return {
        "model": prediction.model.name,
        "setup": prediction.setup.to_document(),
        "peak": prediction.peak.to_document(),
    }
