"""Start-up: whole-process time of `memplan llama-7b --method qlora`, as a ratio to a program that imports
click, rich and pydantic.BaseModel and prints a table, and of a model with 126 layers, as a ratio to that of
the 7B. Targets: at most 2.5, and at most 2.

    python benchmarks/bench_startup.py [ROUNDS]

They take turns, so that a busy machine slows all; times are processor time, and the ratio of medians is what
counts, single times are not judged. Both run from bytecode, as after `pip install`, which compiles what it
installs: a checkout under PYTHONDONTWRITEBYTECODE would be compiled at each start.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BASELINE = """
import click
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

table = Table("component", "GiB")
table.add_row("weights", "1.00")
Console().print(table)
"""
COMMANDS = {
    "click + rich + pydantic + a table": [sys.executable, "-c", BASELINE],
    **{
        f"memplan {model} --method qlora": [sys.executable, "-m", "memplan", model, "--method", "qlora"]
        for model in ("llama-7b", "llama-3.1-405b")
    },
}
TARGETS = (2.5, 2.0)


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Processor seconds of one command, its own children's among them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for command in COMMANDS.values():
            seconds(command, environment)  # compiles and fills the file cache
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                times[name].append(seconds(command, environment))
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        print(f"{name:36} {1000 * median:7.0f} ms (median of {rounds}, best {1000 * min(times[name]):.0f})")
    baseline, ours, largest = medians.values()
    print(f"to the imports {ours / baseline:.2f}, target at most {TARGETS[0]}")
    print(f"126 layers to 32 {largest / ours:.2f}, target at most {TARGETS[1]}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
