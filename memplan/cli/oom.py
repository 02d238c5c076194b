"""memplan oom < LOG: read torch's out-of-memory message, explain it, say what would fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from memplan.cli.options import HELP
from memplan.planner.answers.oom import OutOfMemoryMessage, read_oom
from memplan.planner.answers.oom_explain import cards_that_hold, explain
from memplan.planner.answers.oom_log import read_log
from memplan.planner.inputs.textfile import open_regular, reason
from memplan.planner.tables.errors import UsageError, shorten


@click.command("oom", context_settings=HELP, short_help="Explain a PyTorch out-of-memory error from a log.")
@click.argument("log", required=False, type=click.Path(path_type=Path))
@click.option(
    "--model",
    metavar="MODEL",
    help="The model or training file that failed; the answer then also says what fits.",
)
@click.option(
    "--method", metavar="NAME", help="With --model: the method, if the training file does not name it."
)
@click.option("--batch", type=int, metavar="N", help="With --model: the micro-batch that failed.")
@click.option("--seq", type=int, metavar="N", help="With --model: the sequence length that failed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(log: Path | None, model: str | None, as_json: bool, **options: Any) -> None:
    """Find PyTorch's out-of-memory error (any version) in LOG or standard input, and explain what was
    requested, in use and free, and when.

    Exit code 2: the log has no such error.
    """
    oom = read_oom(_read(log))
    on_host = oom.device == "host"
    advice = _advice(oom, model, options) if model and not on_host else []
    sentences = explain(oom, _checkpoint_bytes(model) if model and on_host else None)
    cards = cards_that_hold(oom)
    if as_json:
        from memplan.planner import __version__
        from memplan.render.json import write

        document = oom.to_document()
        write(
            {
                "schema": document.pop("schema"),
                "memplan_version": __version__,
                **document,
                "explanation": sentences,
                "cards": [gpu.name for gpu in cards],
                "advice": advice,
            }
        )
        return
    from memplan.render.oom import oom_screen

    oom_screen(oom, cards, (*sentences, *advice))


def _read(log: Path | None) -> str:
    try:
        if log is not None:
            with open_regular(log) as file:
                return read_log(file)
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("no log given: name a file or pipe one in, as in memplan oom < train.log")
        return read_log(sys.stdin.buffer)
    except (OSError, ValueError) as error:
        name = "standard input" if log is None else f"'{shorten(str(log))}'"
        raise UsageError(f"cannot read {name}: {reason(error)}") from None


def _checkpoint_bytes(model: str) -> int:
    """The bytes of a model in 16 bits, as its checkpoint most often has it."""
    from memplan.cli.subject import read_subject

    return 2 * read_subject(model, {}).model.spec().parameters


def _advice(oom: OutOfMemoryMessage, model: str, options: dict[str, Any]) -> list[str]:
    """What would have fitted on the GPU of the message, by the formula."""
    from memplan.cli.subject import read_subject
    from memplan.planner.answers.search import advise
    from memplan.planner.tables.gpus import budget

    subject = read_subject(model, {**options, "gpu": None})
    if oom.capacity is None:
        raise UsageError(
            "the message does not state the GPU's capacity, so memplan cannot say what would have "
            "fit: use memplan fit MODEL --gpu NAME"
        )
    room = oom.capacity - (oom.other_processes or 0)
    return advise(subject.model.spec(), subject.setup, budget(f"{room}B"))
