"""A setup as the options that a person types: what `next:` shows, and what reproduces it exactly."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.defaults import BASE
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.recipes import DEFAULT_RECIPE

OPTIONS = {
    "micro_batch": "--batch",
    "sequence_length": "--seq",
    "rank": "--rank",
    "targets": "--targets",
    "weight_dtype": "--dtype",
    "autocast": "--autocast",
    "optimizer": "--optimizer",
    "attention": "--attention",
    "loss": "--loss",
    "gpus": "--gpus",
    "parallel": "--parallel",
    "load": "--load",
    "device": "--device",
    "task": "--task",
}
SAID = ("user", "import")
"""Origins of what a person chose; everything else follows from method and recipe again."""


def command_line(model: str, setup: Setup, gpu: str | None = None) -> str:
    """`memplan MODEL ...` with every choice of the setup, and the GPU."""
    words = ["memplan", model, "--method", setup.method]
    if setup.recipe != DEFAULT_RECIPE:
        words += ["--recipe", setup.recipe]
    for name, origin in sorted(setup.origins.items()):
        if origin in SAID and name not in ("method", "recipe", "gpu", "optimizer_mode"):
            words += _option(name, getattr(setup, name))
    if setup.optimizer_mode != OPTIMIZERS[setup.optimizer].modes[0]:
        words += _option("optimizer_mode", setup.optimizer_mode)
    return shlex.join([*words, "--gpu", gpu] if gpu else words)


def options(fields: Mapping[str, Any]) -> str:
    """Setup fields as the options that set them."""
    return shlex.join([word for name, value in fields.items() for word in _option(name, value)])


def _option(name: str, value: Any) -> list[str]:
    if name == "device" and value == BASE["device"]:  # what is written beside a GPU says nothing more
        return []
    if name == "checkpointing" and value in ("none", "non_reentrant"):
        return ["--no-checkpointing" if value == "none" else "--checkpointing"]
    if name == "padded":
        return ["--padded" if value else "--packed"]
    if name in OPTIONS:
        return [OPTIONS[name], ",".join(value) if isinstance(value, tuple) else str(value)]
    if value is None:
        return []
    text = value if isinstance(value, str) else json.dumps(list(value) if isinstance(value, tuple) else value)
    return ["--set", f"{name}={text}"]
