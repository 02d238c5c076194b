"""Reserved memory of runs whose batches have different lengths: the replay against dry runs of a Trainer.

    PYTHONPATH=.:tests python benchmarks/lengths_vs_dryrun.py --python cuda-env/bin/python

One line a run as Markdown (docs/lengths.md has them); about a minute each. On a GPU that is a size, the cache
has to be given back: how often, and whether the run ends, is compared as well.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from dryrun_lengths import Case, dry_run, replayed, reserved_of_equal_steps

from memplan.planner.tables.units import MIB

CASES = (
    *(Case("lora", seed) for seed in (1, 2, 4)),
    *(Case("full", seed) for seed in (1, 2, 5)),
    Case("lora", 6, "group_by_length"),
    Case("full", 3, "group_by_length"),
    Case("lora", 4, allocator="expandable"),
    Case("full", 2, allocator="expandable"),
    Case("lora", 2, model="mistral"),
    Case("lora", 2, gpu="2.95GiB"),
    Case("lora", 2, gpu="2.75GiB"),
    Case("full", 2, gpu="5.1GiB"),
    Case("full", 2, gpu="4.8GiB"),
)


def line(case: Case, python: str) -> str:
    """One run as a row of the table; sizes in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen, steps = dry_run(case, folder, python)
        found = replayed(case, folder, steps)
        equal = reserved_of_equal_steps(case, folder, max(steps)[0])
    words = (f"{case.model} {case.method}", "sorted" * (case.sampling != "random"), f"seed {case.seed}")
    what = ", ".join(filter(None, (*words, case.allocator, case.gpu.removeprefix("a100-80gb"))))
    sizes = " | ".join(f"{size / MIB:,.0f}" for size in (equal, found.reserved, seen.reserved_bytes))
    error = "" if seen.refused is not None else f"{found.reserved / seen.reserved_bytes - 1:+.2%}"
    replay = end(found.releases, found.steps, found.steps < case.steps)
    seen_end = end(seen.retries, seen.steps, seen.refused is not None)
    return f"| {what} | {sizes} | {error} | {replay} | {seen_end} |"


def end(releases: int, steps: int, refused: bool) -> str:
    """How a run ends: how often it gave its cache back, or in which step it ran out of memory."""
    return f"out of memory in step {steps + 1}" if refused else str(releases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True)
    python = parser.parse_args().python
    print("| run | equal steps | replayed | dry run | error | replay ends | dry run ends |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        print(line(case, python), flush=True)


if __name__ == "__main__":
    main()
