"""memplan fit MODEL --gpu NAME: what fits, what to change, which method, which GPU; and memplan fit
jobs.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memplan import api
from memplan.cli.completion import completes
from memplan.cli.jobs import answer_jobs, jobs_document
from memplan.cli.options import HELP, lengths_option, plan_options, refuse_lengths
from memplan.cli.output import check_writable, write_file
from memplan.cli.progress import Progress
from memplan.cli.subject import Subject, read_subject
from memplan.planner.answers.fit.suggest import changed
from memplan.planner.answers.verdict import not_counted
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu, said_of
from memplan.planner.tables.parallel import SHARED
from memplan.planner.tables.units import gib

if TYPE_CHECKING:
    from memplan.planner.answers.fit.gpus import Shared
    from memplan.planner.answers.search import Fit

EXIT_NOTHING_FITS = 1
FORMATS = ("axolotl", "trl", "llamafactory", "peft")


@click.command("fit", context_settings=HELP, short_help="Find what fits a GPU, and how to make a setup fit.")
@click.argument("model", required=False, shell_complete=completes("model"))
@plan_options
@lengths_option
@click.option(
    "--prefer",
    type=click.Choice(("quality", "memory", "speed")),
    default="quality",
    show_default=True,
    help="What to optimize for.",
)
@click.option(
    "--tasks",
    type=click.IntRange(1, 10**6),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of tasks to train and store results for.",
)
@click.option("--serve", is_flag=True, help="The trained model will be served: prefer no added latency.")
@click.option(
    "--largest-model",
    "want_largest",
    is_flag=True,
    help="Also show the largest catalog model that fits with this method.",
)
@click.option("--explain", is_flag=True, help="Show every limit, every change, and the reasons.")
@click.option(
    "--emit",
    type=click.Choice(FORMATS),
    help="Write a training file for this stack; memplan reads it back and checks that it fits.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --emit: output file. Default: stdout.",
)
def command(
    model: str | None,
    as_json: bool,
    prefer: Any,
    tasks: int,
    serve: bool,
    want_largest: bool,
    emit: str | None,
    output: Path | None,
    **options: Any,
) -> int:
    """Find what fits a GPU: the largest micro-batch and the longest sequence for each method, the changes
    that would make MODEL fit, what each saves and costs, the recommended method, and the smallest GPU.

    Without MODEL: a table of models of every size, under full, LoRA and QLoRA.
    MODEL may be a file of jobs (keys: jobs, prices); the answer is then the cheapest GPU for each job and for
    all of them. Exit code 1: nothing fits.
    """
    model = model or options.get("base_model")
    if model is None:
        refuse_lengths(options, "models of every size")
        return _every_size(options, as_json)
    if jobs := jobs_document(model):
        refuse_lengths(options, "a file of jobs")
        return answer_jobs(jobs, as_json)
    if output is not None and emit is None:
        raise UsageError("-o needs --emit: axolotl, trl, llamafactory or peft")
    if output is not None:
        check_writable(output)
    subject = read_subject(model, options)
    if subject.loader is not None:
        subject = replace(subject, setup=subject.loader.of_any_batch(subject.setup))
    if subject.setup.gpu is None:
        raise UsageError(
            "fit needs a GPU: --gpu NAME (memplan list gpus), --gpu local, or a budget such as --gpu 23.5GiB"
        )
    with Progress("fit", as_json):
        found = search(subject, prefer, tasks, serve, options["engine"])
        found = _with_lengths(subject, found)
    text = None if emit is None else _emit(subject, found, emit)
    if text is not None and output is not None:
        write_file(output, text)
    elif text is not None and not as_json:
        click.echo(text, nl=False)
    code = 0
    if emit is None or as_json:
        emitted = None if emit is None else {"emitted": {"format": emit, "text": text}}
        code = _show(subject, found, options, want_largest, as_json, emitted)
    return EXIT_NOTHING_FITS if emit is not None and text is None else code


def _every_size(options: dict[str, Any], as_json: bool) -> int:
    """`fit --gpu NAME` without a model."""
    from memplan.cli.options import file_fields, given_fields
    from memplan.cli.sizes import answer_by_size
    from memplan.planner.answers.fit.sizes import METHODS
    from memplan.planner.inputs.setup import resolve

    given = given_fields(options)
    if given.get("gpu") is None:
        raise UsageError("fit needs a model, or a GPU (--gpu NAME) for a table of models of every size")
    given["gpu"] = api.setup_gpu(given["gpu"])
    setup = resolve(given, imported=file_fields(options))
    asked = () if setup.method in METHODS or "method" not in given else (setup.method,)
    return answer_by_size(setup, (*METHODS, *asked), as_json)


def search(
    subject: Subject,
    prefer: Any = "quality",
    tasks: int = 1,
    serve: bool = False,
    engine: str | None = None,
) -> Fit:
    """The formula's whole answer, with room for its recorded worst error; for a family that it lacks, unless
    it is asked for by name, the trace's.
    """
    from memplan.planner.answers.search import fit

    gpu = find_gpu(subject.setup.gpu or "")
    if engine != "formula" and api.traced_alone(subject.model, subject.setup):
        found = api.fit_by_trace(
            subject.model,
            subject.setup,
            gpu,
            prefer=prefer,
            tasks=tasks,
            serve=serve,
            not_modelled=subject.not_modelled,
        )
    else:
        found = fit(
            subject.model.spec(),
            subject.setup,
            gpu,
            error=api.recorded_accuracy("formula").margin,
            prefer=prefer,
            tasks=tasks,
            serve=serve,
            not_modelled=subject.not_modelled,
        )
    return replace(found, typed=subject.model.typed)


def _with_lengths(subject: Subject, found: Fit) -> Fit:
    """The answer with what --lengths say of the setup that was asked for: it does not surely fit where a run
    of such lengths runs out of memory.
    """
    if subject.loader is None:
        return found
    prediction = subject.predict(subject.setup, None if found.engine == "trace" else "formula")
    methods = found.methods
    if found.asked.holds and prediction.gpus[0].verdict == "tight":
        tight = replace(found.asked, verdict="tight", holds=False)
        methods = tuple(tight if each is found.asked else each for each in methods)
    return replace(found, methods=methods, lengths=prediction.extra["lengths"])


def _show(
    subject: Subject,
    found: Fit,
    options: Mapping[str, Any],
    want_largest: bool,
    as_json: bool,
    emitted: Mapping[str, Any] | None = None,
) -> int:
    from memplan.planner.answers.fit.gpus import largest_model

    with Progress("fit", as_json):
        shared, alike = _shared(subject, found)
        largest = largest_model(subject.setup, found.gpu, found.error) if want_largest else None
        confirmed = _confirm(subject, found) if options.get("engine") == "trace" else []
        warnings = _warnings(subject, found)
    if as_json:
        from memplan.render.json import write

        alone = 1 if found.asked.holds else None
        fewest = shared.count if shared is not None else alone
        extra = {
            "fewest_cards": None if found.not_modelled else fewest,
            "shared": [each.to_document() for each in alike or filter(None, (shared,))],
            "largest_model": {"name": largest[0], "parameters": largest[1]} if largest else None,
            "confirmed": [
                {"what": what, "prediction": prediction.to_document()} for what, prediction in confirmed
            ],
            "warnings": warnings,
        }
        write({**found.to_document(), **extra, **(emitted or {})})
    else:
        from memplan.render.console import make_console, show
        from memplan.render.fit import fit_screen

        console = make_console()
        explain = bool(options.get("explain"))
        parts = fit_screen(found, shared, alike, largest, confirmed, warnings, explain, console.width)
        show(*parts, console=console)
    fits = found.decision.method is not None or any(
        effect.fits for effect in (*found.changes, *found.waterfall)
    )
    if found.not_modelled and fits:
        click.echo(f"memplan: no verdict: {not_counted(found.not_modelled)}", err=True)
        return EXIT_NOTHING_FITS if options.get("strict") else 0
    return 0 if fits else EXIT_NOTHING_FITS


def _shared(subject: Subject, found: Fit) -> tuple[Shared | None, list[Shared]]:
    """How many GPUs share the setup as asked, where one does not hold it; and what the other strategies need
    on as many.
    """
    from memplan.planner.answers.fit.gpus import share, share_alike

    if found.engine == "trace" or (found.asked.holds and subject.setup.gpus == 1):
        return None, []
    spec, setup = subject.model.spec(), subject.setup
    parallel = setup.parallel if setup.parallel in SHARED else "fsdp"
    shared = share(spec, setup, found.gpu, found.error, parallel)
    if shared is None or shared.count is None or shared.count <= 1:
        return shared, []
    return shared, share_alike(spec, setup, found.gpu, shared.count, found.error)


def _warnings(subject: Subject, found: Fit) -> list[str]:
    """What `plan` warns of, for the setup as asked and for the recommended one: a fit that fragmentation
    could undo, experts that stay in 16 bits, ...
    """
    from memplan.planner.answers.search import TRACED

    engine = None if found.engine == "trace" else "formula"
    lines = list(subject.annotate(api.predict(subject.model, subject.setup, engine)).warnings)
    if found.engine == "trace":
        lines.append(TRACED)
    lines += [said] if (said := said_of(found.gpu)) else []
    method = found.decision.method
    chosen = found.method(method).setup if method is not None else None
    if chosen is not None and (found.decision.fields or method != subject.setup.method):
        known = api.predict(subject.model, changed(chosen, found.decision.fields), engine).warnings
        lines += [f"recommended {method}: {line}" for line in known if line not in lines]
    return lines


def _confirm(subject: Subject, found: Fit) -> list[tuple[str, Prediction]]:
    """The trace's word on the setup itself and on the formula's largest micro-batch."""
    asked, setup = found.asked, subject.setup
    wanted = {f"micro-batch {setup.micro_batch:,} x {setup.sequence_length:,} tokens": setup}
    if asked.largest_batch is not None and asked.largest_batch != setup.micro_batch:
        wanted[f"micro-batch {asked.largest_batch:,} x {setup.sequence_length:,} tokens"] = setup.replaced(
            micro_batch=asked.largest_batch
        )
    return [(what, api.predict(subject.model, each, "trace")) for what, each in wanted.items()]


def _emit(subject: Subject, found: Fit, stack: str) -> str | None:
    """The configuration file for a stack, read back and predicted again; None, with the reason on standard
    error, where nothing fits.
    """
    from memplan.planner.importers.emit import emit_config

    method = found.decision.method
    if method is None:
        click.echo(
            "memplan: nothing fits, so no training file was written: run memplan fit without --emit "
            "to see why",
            err=True,
        )
        return None
    entry = found.method(method)
    setup = entry.setup
    if setup is None:
        raise UsageError(f"method {method} could not be evaluated for this setup")
    if found.decision.fields:
        setup = changed(setup, found.decision.fields)
    emitted = emit_config(stack, subject.model, setup)
    for line in emitted.differs:
        click.echo(f"memplan: {line}", err=True)
    if stack != "peft":
        verdict = api.predict(subject.model, emitted.setup).gpus[0]
        needed = f"{gib(verdict.needed_bytes)} of {gib(verdict.usable_bytes)}"
        if verdict.verdict == "no":
            again = (
                f"memplan fit {subject.model.name} --recipe {stack} --gpu {verdict.name} searches with "
                "that stack's defaults"
            )
            click.echo(
                f"memplan: with {stack}'s own settings this does not fit {verdict.name} ({needed}), so "
                f"nothing was written; {again}",
                err=True,
            )
            return None
        word = (
            f"fits {verdict.name}" if verdict.verdict is not None else f"needs at least this ({verdict.why})"
        )
        click.echo(f"memplan: the file, read back, {word}: {needed}", err=True)
    return emitted.text
