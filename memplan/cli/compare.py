"""memplan compare MODEL: methods side by side; memplan compare A B: two training files, what differs and which bytes it explains."""

from __future__ import annotations

from typing import Any

import click

from memplan import api
from memplan.cli.options import HELP, plan_options
from memplan.cli.subject import Subject, read_subject
from planner import __version__
from planner.breakdown import Prediction
from planner.errors import UsageError
from planner.gpus import find_gpu
from planner.setup import Setup


@click.command("compare", context_settings=HELP, short_help="Methods side by side, or two setups against each other.")
@click.argument("model")
@click.argument("other", required=False)
@plan_options
@click.option("--tasks", type=click.IntRange(1, 10**6), default=1, show_default=True, metavar="N", help="How many tasks are kept.")
@click.option("--methods", metavar="A,B,...", help="The methods to set side by side. Default: full,lora,adalora,qlora.")
@click.option("--largest-model", is_flag=True, help="With --gpu: the catalogue's largest model for each method.")
def command(model: str, other: str | None, as_json: bool, tasks: int, methods: str | None, largest_model: bool, **options: Any) -> None:
    """Full, LoRA, AdaLoRA and QLoRA on MODEL: what is trained, in which precision, every component at the peak, what is kept per task, the
    computation, and what merging takes. With two arguments (models or training files): their differences, and the bytes that each explains.
    """
    subject = read_subject(model, options)
    engine = options["engine"] or "formula"
    if other is not None:
        _pair(subject, read_subject(other, options), engine, as_json)
        return
    from planner.compare import METHODS_COMPARED, columns, compare_document

    gpu = find_gpu(subject.setup.gpu) if subject.setup.gpu else None
    if largest_model and gpu is None:
        raise UsageError("--largest-model needs a card: --gpu NAME")
    names = METHODS_COMPARED if methods is None else tuple(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    if not names:
        raise UsageError("--methods names none: expected names such as full,lora,qlora (memplan list methods)")
    error = api.recorded_accuracy("formula").margin
    found = columns(
        subject.model.spec(), subject.setup, lambda setup: api.predict(subject.model, setup, engine), names, gpu, error, largest_model
    )
    if all(column.prediction is None for column in found):
        raise UsageError(found[0].error or "no method could be predicted")
    if as_json:
        from memplan.render.json import write

        write(compare_document(subject.model.name, found, tasks))
        return
    from memplan.render.compare import compare_screen
    from memplan.render.console import make_console, show

    console = make_console()
    show(*compare_screen(subject.model.name, subject.setup, found, tasks, gpu, console.width), console=console)


def _pair(first: Subject, second: Subject, engine: str, as_json: bool) -> None:
    from planner.compare import SCHEMA, components_of, differences
    from planner.formula import plan

    one, two = (subject.annotate(api.predict(subject.model, subject.setup, engine)) for subject in (first, second))

    def device_bytes(setup: Setup) -> int:
        return plan(first.model.spec(), setup).peak.device_bytes

    target = second.setup
    found = differences(first.setup, target, device_bytes)
    model_bytes = 0
    if first.model.config != second.model.config:
        model_bytes = plan(second.model.spec(), target).peak.device_bytes - device_bytes(target)
    if as_json:
        from memplan.render.json import write

        write({"schema": SCHEMA, "memplan_version": __version__, "first": _side(one), "second": _side(two),
               "differences": [difference.to_document() for difference in found], "model_bytes": model_bytes,
               "components": {"first": components_of(one), "second": components_of(two)}})  # fmt: skip
        return
    from memplan.render.compare import pair_screen
    from memplan.render.console import show

    files = tuple(subject.imported.source if subject.imported else "" for subject in (first, second))
    show(*pair_screen(one, two, found, model_bytes, (files[0], files[1])))


def _side(prediction: Prediction) -> dict[str, Any]:
    return {"model": prediction.model.name, "setup": prediction.setup.to_document(), "peak": prediction.peak.to_document()}
