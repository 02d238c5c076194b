"""How much more the allocator reserves than tensors hold: the share that the formula's verdict does not
count, over seeded setups.

python benchmarks/fragmentation.py [COUNT] [--seed N]

Draws catalog models of 1 to 80 billion parameters with setups as people write them, traces each (nothing is
allocated), and prints peak reserved minus peak allocated, as a share of the allocated bytes: median, P95 and
worst, over 4-bit bases (whose loading and dequantizing leave holes of every size) and over the others.
planner/answers/verdict.py UNCOUNTED cites the P95.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from memplan import api
from memplan.planner.inputs.models import find, index
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

PARAMETERS = (10**9, 8 * 10**10)
METHODS = ("full", "lora", "lora", "rslora", "dora", "qlora", "qlora")
RECIPES = ("raw", "hf", "hf", "trl", "axolotl", "llamafactory")


def case(seed: int, number: int) -> tuple[str, dict[str, Any]]:
    """Case `number` of a seed: a catalog model's name and the setup's fields."""
    rng = random.Random(f"{seed}-{number}")
    least, most = PARAMETERS
    name = rng.choice(sorted(name for name, row in index().items() if least <= row["parameters"] <= most))
    fields: dict[str, Any] = {
        "method": rng.choice(METHODS),
        "recipe": rng.choice(RECIPES),
        "gpu": rng.choice(("a100-80gb", "rtx-4090")),
    }
    fields["allocator"] = (
        "native"  # expandable segments, one recipe's default, leave next to nothing between tensors
    )
    fields["micro_batch"] = rng.choice((1, 1, 2, 4, 8))
    fields["sequence_length"] = rng.choice((512, 1024, 2048, 4096))
    fields["checkpointing"] = rng.choice(("none", "non_reentrant"))
    if fields["method"] != "full":
        fields["rank"] = rng.choice((8, 16, 64))
        fields["targets"] = rng.choice(("all-linear", "attention"))
    return name, fields


def shares(seed: int, count: int) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Each legal case with (reserved - allocated) / allocated of its traced peak."""
    for number in range(count):
        name, fields = case(seed, number)
        model = find(name)
        try:
            peak = api.predict(model, resolve(fields, max_positions=model.spec().max_positions), "trace").peak
        except UsageError as error:
            print(f"refused: {name} {fields}: {error}")
            continue
        yield name, fields, peak.reserved_bytes / peak.allocated_bytes - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, nargs="?", default=40)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    found: dict[bool, list[float]] = {False: [], True: []}
    began = time.perf_counter()
    for name, fields, share in shares(asked.seed, asked.count):
        found[fields["method"] == "qlora"].append(share)
        print(
            f"{share:7.2%}  {name}: {' '.join(f'{key}={value}' for key, value in fields.items())}", flush=True
        )
    print(f"\n{time.perf_counter() - began:.0f} s")
    for quantized, each in found.items():
        if each:
            print(f"{'4-bit base' if quantized else 'others':10}  {len(each)} traces: {summary(each)}")


def summary(values: list[float]) -> str:
    """Median, the smallest value that 95 in 100 do not pass, and the worst."""
    ordered = sorted(values)
    return (
        f"median {statistics.median(ordered):.2%}, P95 {ordered[-(-95 * len(ordered) // 100) - 1]:.2%}, "
        f"worst {ordered[-1]:.2%}"
    )


if __name__ == "__main__":
    main()
