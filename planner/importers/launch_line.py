"""A launch line taken apart: what stands before the program, how many ranks its launcher starts, and the
program's own words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memplan.planner.importers.rules import integer
from memplan.planner.tables.errors import UsageError, shorten

ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
OF_LAUNCHERS = ("NPROC_PER_NODE", "NNODES", "CUDA_VISIBLE_DEVICES", "FORCE_TORCHRUN")
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_SWITCHES = """
multi_gpu tpu cpu use_deepspeed use_fsdp use_megatron_lm use_parallelism_config quiet debug same_network module m no_python
standalone dynamo_use_fullgraph dynamo_use_dynamic downcast_bf16 enable_cpu_affinity use_xpu no_local_rank
"""
SWITCHES = frozenset(_SWITCHES.split())
"""Launcher options that take no value (accelerate 1.15 commands/launch.py, torch 2.13 distributed/run.py)."""
LAUNCHES_ITSELF = r"llamafactory-cli|lmf|swift"


@dataclass(slots=True)
class Line:
    """A launch line taken apart: what the launcher said, the program, and the program's own words."""

    ranks: int = 1
    machines: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    program: str = ""
    words: list[str] = field(default_factory=list)
    expandable: bool | None = None
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def take_apart(words: list[str]) -> Line:
    """The line's parts; its words are used up. Raises UsageError where no program is named, or a count of ranks
    is none.
    """
    line = Line()
    while words and ENVIRONMENT.fullmatch(words[0]) and not words[0].startswith("-"):
        name, _, value = words.pop(0).partition("=")
        if name in ALLOCATOR:
            line.expandable = "expandable_segments:true" in value.lower().replace(" ", "")
        elif "$" in value:
            if name in OF_LAUNCHERS:
                line.notes.append(f"{name} is a variable of the shell: its default is assumed")
        else:
            line.environment[name] = value
    if not words:
        raise UsageError(
            "no launch line: expected, for example, memplan -- accelerate launch -m axolotl.cli.train "
            "config.yaml"
        )
    launcher = Path(words[0]).name
    if launcher == "env":
        return take_apart(words[1:])
    if launcher == "accelerate" and words[1:2] == ["launch"]:
        _launcher(line, words[2:])
        line.ranks = integer("--num_processes", line.options.get("num_processes", 1))
    elif launcher == "torchrun" or words[1:3] == ["-m", "torch.distributed.run"]:
        _launcher(line, words[1 if launcher == "torchrun" else 3 :])
        line.ranks = _count(
            "--nproc_per_node", line.options.get("nproc_per_node", line.options.get("nproc-per-node", 1))
        )
        line.machines = _count("--nnodes", str(line.options.get("nnodes", 1)).split(":")[-1])
    elif launcher == "deepspeed":
        _launcher(line, words[1:])
        line.ranks = integer("--num_gpus", line.options.get("num_gpus", 1))
        line.machines = integer("--num_nodes", line.options.get("num_nodes", 1))
    elif re.fullmatch(r"python[0-9.]*", launcher):
        _launcher(line, words[1:])
    else:
        line.program, line.words = launcher, words[1:]
    if re.fullmatch(LAUNCHES_ITSELF, line.program):
        _launches_itself(line)
    elif visible := line.environment.get("CUDA_VISIBLE_DEVICES"):
        line.notes.append(
            f"{len(visible.split(','))} devices are visible; the launcher decides how many ranks run"
        )
    return line


def _launches_itself(line: Line) -> None:
    """A program that starts its ranks by torchrun: as many as the environment says, else LLaMA-Factory one for
    each device that is visible, with expandable segments (LLaMA-Factory 0.9.5 launcher.py; ms-swift 4.6
    cli/main.py).
    """
    said, every = line.environment, line.program.startswith(("llamafactory", "lmf"))
    visible = [device for device in said.get("CUDA_VISIBLE_DEVICES", "").split(",") if device.strip()]
    own = len(visible) if every else 1
    line.ranks = _count("NPROC_PER_NODE", said.get("NPROC_PER_NODE") or max(own, 1))
    line.machines = _count("NNODES", said.get("NNODES") or 1)
    forced = said.get("FORCE_TORCHRUN", "0").lower() in ("1", "true", "y")
    if every and line.expandable is None and (forced or len(visible) > 1):
        line.expandable = said.get("OPTIM_TORCH", "1").lower() in ("1", "true", "y")


def _count(key: str, value: Any) -> int:
    if str(value) in ("gpu", "auto"):
        raise UsageError(f"{key} {value} depends on the machine: write the number of GPUs")
    return integer(key, value)


def _launcher(line: Line, words: list[str]) -> None:
    """Read a launcher's own options up to the script or the module, which is the program."""
    while words:
        word = words.pop(0)
        if word in ("-m", "--module"):
            line.program = words.pop(0) if words else ""
            break
        if not word.startswith("-"):
            line.program = word
            break
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if equals:
            line.options[name] = value
        elif name in SWITCHES:
            line.options[name] = True
        elif words:
            line.options[name] = words.pop(0)
    line.words = words
    if not line.program:
        raise UsageError("the launch line names no program: expected a script, or -m and a module")


def unknown_variables(line: Line) -> None:
    """Words whose value only the shell knows are left out, and named."""
    kept: list[str] = []
    for word in line.words:
        if not re.search(r"\$\{?\w", word):
            kept.append(word)
            continue
        option = kept.pop() if kept and kept[-1].startswith("--") and not word.startswith("--") else word
        line.notes.append(f"{shorten(option, 40)} is a variable of the shell: its default is assumed")
    line.words = kept
