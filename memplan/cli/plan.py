"""memplan MODEL: predict one setup, print the first screen or the document."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from memplan.cli.completion import completes
from memplan.cli.options import HELP, lengths_option, plan_options, refuse_lengths
from memplan.cli.progress import Progress
from memplan.cli.subject import NoModelError, Subject, open_setup, read_subject
from memplan.planner.answers.fit.suggest import suggest
from memplan.planner.answers.verdict import margin, what_it_takes
from memplan.planner.formula.sharding.refusals import lacks_a_rule
from memplan.planner.inputs.models import Model
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.gpus import Gpu, find_gpu
from memplan.planner.tables.units import gib

if TYPE_CHECKING:
    from memplan.planner.answers.cost import Cost
    from memplan.render.terminal import Advice

EXIT_DOES_NOT_FIT = 1
SAVINGS = 2  # changes that the first screen names


EXPLAINED = "tensors"
"""What `--explain` shows: the first screen ends in these two words, and they work as they stand there."""


@click.command(
    "plan", context_settings=HELP, short_help="Predict the memory that a run needs (the default command)."
)
@click.argument("model", shell_complete=completes("model"))
@click.argument("extra", nargs=-1, metavar="")
@plan_options
@lengths_option
@click.option(
    "--explain", is_flag=True, help="Show every tensor with its shape, dtype, count, bytes and reason."
)
@click.option(
    "--assumptions", is_flag=True, help="Show defaults, assumptions, accuracy and warnings in full."
)
@click.option("--price", metavar="N/h", help="What one GPU costs for an hour: the run's price, an estimate.")
@click.option("--tokens", metavar="N", help="Tokens to train on, such as 10M: the run's time, an estimate.")
def command(model: str, extra: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Predict how much GPU memory MODEL needs under one setup, and where every byte goes.

    MODEL: a name (memplan list models), a Hugging Face id, a folder, a config.json, or a training
    configuration file.
    """
    if options["explain"] and EXPLAINED in (model, *extra):
        model, *others = [word for word in (model, *extra) if word != EXPLAINED] or [model]
        extra = tuple(others)
    if extra:
        raise UsageError(
            f"expected one MODEL, found '{shorten(model)}' and '{shorten(extra[0])}'; a command such "
            "as compare comes first"
        )
    try:
        subject = read_subject(model, options)
    except NoModelError as error:
        refuse_lengths(options, "a file that names no model")
        return _open_model(error, options, as_json)
    return answer(subject, options, as_json)


def _open_model(error: NoModelError, options: dict[str, Any], as_json: bool) -> int:
    """A training file that leaves its model open: what its setup needs for models of every size."""
    from memplan.cli.sizes import answer_by_size

    setup = open_setup(error.imported, options)
    notes = (f"{error}", *error.imported.warnings)
    return answer_by_size(setup, (setup.method,), as_json, notes)


def answer(subject: Subject, options: Mapping[str, Any], as_json: bool) -> int:
    """Predict, print, and return the exit code: what `plan` does once its subject is known. `options` holds
    `explain` and `assumptions` as well.
    """
    found, setup = subject.model, subject.setup
    with Progress("plan", as_json):
        prediction = subject.annotate(subject.predict(setup, options["engine"]))
    gpu = find_gpu(setup.gpu) if setup.gpu else None
    costs = cost_of(found, prediction, gpu, options)
    if as_json:
        from memplan.render.json import write

        write(prediction.to_document(options["explain"]) | ({"cost": costs.to_document()} if costs else {}))
    else:
        print_screen(prediction, gpu, advice_on(found, prediction, gpu), options)
        if costs:
            from memplan.render.console import show
            from memplan.render.cost import cost_block

            show("", cost_block(costs))
    return exit_code(prediction, gpu, options["strict"])


def cost_of(found: Model, prediction: Prediction, gpu: Gpu | None, options: Mapping[str, Any]) -> Cost | None:
    """What the run costs beside GPU memory, where --tokens or --price ask for it."""
    tokens, price = options.get("tokens"), options.get("price")
    if tokens is None and price is None:
        return None
    from memplan.planner.answers.cost import cost, parse_price, parse_tokens

    if gpu is None:
        raise UsageError("--tokens and --price need a GPU: name one with --gpu")
    return cost(
        found.spec(),
        prediction,
        gpu,
        parse_tokens(tokens) if tokens is not None else None,
        parse_price(price) if price is not None else None,
    )


def advice_on(found: Model, prediction: Prediction, gpu: Gpu | None) -> Advice:
    """The changes that would help most and, on a GPU that is named, how far the setup can go; neither where
    the formula lacks the family (a trace does not need it) or a rule.
    """
    from memplan.render.terminal import Advice

    setup = prediction.setup
    if lacks_a_rule(setup):
        return Advice()
    try:
        changes = () if setup.method == "inference" else suggest(found.spec(), setup, prediction, SAVINGS)
        if gpu is None or prediction.not_modelled or prediction.engine == "trace" or setup.device == "cpu":
            return Advice(changes)
        from memplan.planner.answers.fit.limits import limits

        return Advice(changes, limits(found.spec(), setup, gpu, margin(prediction)))
    except UsageError:
        if prediction.engine == "formula":
            raise
        return Advice()


def print_screen(prediction: Prediction, gpu: Gpu | None, advice: Advice, options: Mapping[str, Any]) -> None:
    """The first screen on standard output, and what --explain and --assumptions add."""
    from memplan.render.console import make_console, show
    from memplan.render.terminal import plan_screen

    console = make_console()
    width, ascii_only = console.width, console.options.ascii_only
    parts = plan_screen(prediction, gpu, advice, width, ascii_only)
    if options["explain"]:
        from memplan.render.explain import explanation

        parts += ["", *explanation(prediction, gpu, width, ascii_only)]
    if options["assumptions"]:
        from memplan.render.sentences import assumptions

        parts += ["", *assumptions(prediction)]
    show(*parts, console=console)


def exit_code(prediction: Prediction, gpu: Gpu | None, strict: bool = False) -> int:
    """1 where the GPU named is too small; 0 otherwise, with a warning on standard error where it is tight or
    something is not counted: with `strict` that is 1 too.
    """
    if gpu is None:
        return 0
    verdict = prediction.gpus[0]
    if verdict.verdict == "tight":
        print(f"memplan: tight on {verdict.name}: {what_it_takes(prediction, gpu)}", file=sys.stderr)
    if verdict.verdict is None:
        print(
            f"memplan: at least {gib(verdict.low_bytes or verdict.needed_bytes)}; {verdict.why}",
            file=sys.stderr,
        )
    uncertain = strict and verdict.verdict != "fits"
    return EXIT_DOES_NOT_FIT if uncertain or verdict.verdict == "no" else 0
