"""The options that plan, compare, fit, profile and report share: one decorator, and what it gives as Setup
fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from memplan.cli.completion import completes
from memplan.names import SHORT, setup_fields
from memplan.planner.inputs.setup import FIELDS
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.losses import Loss
from memplan.planner.tables.parallel import SPOKEN
from memplan.planner.tables.sdp import ATTENTIONS

Command = TypeVar("Command", bound=Callable[..., Any])
ENGINES = ("formula", "trace")
HELP = {"help_option_names": ["-h", "--help"]}

FIELD_OF: dict[str, str] = {
    **{
        name: name
        for name in (
            "method",
            "recipe",
            "task",
            "images",
            "rank",
            "targets",
            "autocast",
            "optimizer",
            "checkpointing",
            "attention",
            "loss",
            "padded",
        )
    },
    **{name: name for name in ("load", "gpu", "gpus", "parallel", "device")},
    **SHORT,
}
"""Option -> the Setup field that it sets."""

_OPTIONS = (
    click.option(
        "--method",
        metavar="NAME",
        shell_complete=completes("method"),
        help="full, lora, qlora, adalora, dora, ... inference (memplan list methods). Default: lora.",
    ),
    click.option(
        "--recipe",
        metavar="NAME",
        shell_complete=completes("recipe"),
        help="Training stack that supplies the remaining defaults (memplan list recipes). Default: hf.",
    ),
    click.option(
        "--task",
        metavar="NAME",
        help="What is trained: sft, classify, reward, dpo, ... (memplan list tasks). Default: sft.",
    ),
    click.option(
        "--engine",
        type=click.Choice(ENGINES),
        help="formula (default): symbolic, instant, no torch. trace: runs the real libraries on meta "
        "tensors.",
    ),
    click.option(
        "--adapter", type=click.Path(), metavar="FILE", help="A PEFT adapter_config.json of any peft_type."
    ),
    click.option("--batch", type=int, metavar="N", help="Micro-batch size. Default: 1."),
    click.option(
        "--seq",
        type=int,
        metavar="N",
        help="Sequence length. Default: 2048, or the model's maximum positions if fewer.",
    ),
    click.option(
        "--images",
        metavar="N@WxH",
        help="Pictures of one example and their pixels, such as 1@1024x768 (several sizes with commas), "
        "videos with their frames, such as 1@1280x720x16, or none. They are part of the sequence.",
    ),
    click.option("--rank", type=int, metavar="N", help="Adapter rank."),
    click.option("--targets", metavar="A,B | all-linear | attention", help="Modules to attach adapters to."),
    click.option("--dtype", metavar="DTYPE", help="Weight dtype: bfloat16, float16 or float32."),
    click.option("--autocast", metavar="DTYPE", help="Autocast dtype: bfloat16, float16 or none."),
    click.option(
        "--optimizer",
        metavar="NAME",
        shell_complete=completes("optimizer"),
        help="Optimizer, by its Hugging Face name (memplan list optimizers).",
    ),
    click.option(
        "--checkpointing/--no-checkpointing",
        default=None,
        help="Turn gradient checkpointing (non-reentrant) on or off.",
    ),
    click.option(
        "--attention",
        metavar="NAME",
        help=f"Attention: {', '.join(ATTENTIONS)}.",
    ),
    click.option(
        "--loss",
        metavar="NAME",
        help="Loss: " + ", ".join(get_args(Loss)) + ".",
    ),
    click.option("--padded/--packed", default=None, help="Batches with a padding mask, or without padding."),
    click.option("--load", metavar="HOW", help="How weights are loaded: pretrained or random."),
    click.option(
        "--gpu",
        metavar="NAME",
        shell_complete=completes("gpu"),
        help="GPU name (memplan list gpus), 'local', or a memory budget such as 23.5GiB.",
    ),
    click.option("--gpus", type=int, metavar="N", help="Number of GPUs."),
    click.option("--parallel", metavar="NAME", help=f"Strategy: {SPOKEN}."),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set any Setup field by name; repeatable.",
    ),
    click.option(
        "--model", "base_model", metavar="MODEL", help="The base model, where a training file leaves it open."
    ),
    click.option(
        "--setup",
        "setup_file",
        type=click.Path(),
        metavar="FILE",
        help="A Setup as YAML or JSON. Options override it.",
    ),
    click.option(
        "--device",
        metavar="NAME",
        help="cuda or cpu: the device to run on (profile) or to model (plan). Default: cuda.",
    ),
)
DRY = "dry"
PYTHON = click.option(
    "--python",
    metavar="PATH",
    help="With --device dry: the interpreter, with a CUDA build of torch. Default: the running one.",
)


def check_python(python: str | None, device: str) -> None:
    """Raises UsageError where --python says nothing: only a dry run has another interpreter."""
    if python is not None and device != DRY:
        raise UsageError(f"--python goes with --device dry, the device is {shorten(device)}")


_LENGTHS = click.option(
    "--lengths",
    metavar="FILE | MEAN:P95:MAX",
    help="Lengths of the dataset's examples: a file (one a line, a column length or input_ids, or a "
    "histogram) or three numbers. --seq then cuts rows off.",
)
_STRICT = click.option(
    "--strict", is_flag=True, help="Exit 1 where a GPU is tight, not only where it is too small."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")


def dry_options(cases: Any, python: str | None) -> dict[str, Any]:
    """What a campaign's `run` needs so that its cases run over the stub libraries; empty on real devices."""
    check_python(python, cases.device)
    if cases.device != DRY:
        return {}
    from memplan.profiler.dryrun.worker import TARGETS, gpu_of, worker_for

    return {"targets": TARGETS, "server": worker_for(gpu_of(cases.cases), python).isolation}


def plan_options(command: Command) -> Command:
    """Adds every shared option to a click command; the function takes them as **options and gives them to
    `given_fields`.
    """
    return setup_options(_JSON(command))


def refuse_lengths(options: Mapping[str, Any], what: str) -> None:
    """Raises UsageError where --lengths is given and the answer is about `what`."""
    if options.get("lengths") is not None:
        raise UsageError(f"--lengths goes with one MODEL, not with {what}: name a model, or leave it out")


def lengths_option(command: Command) -> Command:
    """Adds --lengths, for a command whose answer is a prediction."""
    return _LENGTHS(command)


def setup_options(command: Command) -> Command:
    """The same without --json, for a command whose answer is a page."""
    for option in (_STRICT, *reversed(_OPTIONS)):
        command = option(command)
    return command


def given_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The Setup fields that the options say, only those that were given: --set last, since it is the most
    explicit. Raises UsageError.
    """
    fields = {
        FIELD_OF[name]: value for name, value in options.items() if name in FIELD_OF and value is not None
    }
    fields = setup_fields(fields)
    if options.get("adapter"):
        fields["adapter"] = _read_json_object(options["adapter"], "--adapter")
    for assignment in options.get("assignments") or ():
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"--set '{shorten(assignment)}': expected KEY=VALUE, as in --set double_quant=false"
            )
        fields[key.strip().replace("-", "_")] = read_value(text.strip())
    return fields


def read_value(text: str) -> Any:
    """The value that a person typed: JSON where it is JSON (true, 8, 0.1, ["a"]), otherwise the text
    itself.
    """
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def file_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The Setup fields that --setup FILE holds (or the `setup` of memplan's own document); empty without one.
    Raises UsageError.
    """
    if not options.get("setup_file"):
        return {}
    from memplan.planner.importers.files import read_mapping

    content = read_mapping(Path(options["setup_file"]))
    if isinstance(content.get("setup"), dict) and str(content.get("schema", "")).startswith("memplan."):
        return {key: value for key, value in content["setup"].items() if key in FIELDS}
    return content


def _read_json_object(path: str, option: str) -> dict[str, Any]:
    from memplan.planner.inputs.jsonfile import read_json

    try:
        return read_json(Path(path))
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None
