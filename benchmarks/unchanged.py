"""Record predictions before a refactoring and compare them after it: `record FILE`, then `compare FILE`.

A record holds each case itself (config, fields, engine) beside its answer, so that what is asked does not
change with the code that asks. Compared are every moment's allocated bytes, its components, and the peak's
reserved bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

import memplan

Case = dict[str, Any]


def cases(formula: int, trace: int, seed: int) -> list[Case]:
    """`formula` and `trace` many cases, drawn as benchmarks/formula_vs_trace.py draws them; half of the
    formula's are named entries.
    """
    from formula_vs_trace import case, legal

    found: list[Case] = []
    for engine, count, small in (("formula", formula, None), ("trace", trace, True)):
        number = 0
        while count:
            name, config, fields = case(seed, number, small)
            number += 1
            if legal(config, fields) is not None:
                found.append({"name": name, "engine": engine, "config": config, "fields": fields})
                count -= 1
    return found


def answer(case: Case) -> dict[str, Any]:
    """What memplan answers: bytes by moment and component, or the refusal's text."""
    try:
        found = memplan.plan(case["config"], engine=case["engine"], **case["fields"])
    except Exception as error:  # a refusal, or a fault, is an answer too
        return {"refused": f"{type(error).__name__}: {error}"}
    moments = {
        moment.moment: {
            "allocated": moment.allocated_bytes,
            **{row.component: 0 for row in moment.rows},
        }
        for moment in found.moments
    }
    for moment in found.moments:
        for row in moment.rows:
            moments[moment.moment][row.component] += row.bytes
    return {
        "moments": moments,
        "peak": found.peak.moment,
        "reserved": found.peak.reserved_bytes,
        "parameters": [
            found.total_parameters,
            found.trainable_parameters,
            found.checkpoint_bytes,
            found.host_bytes,
        ],
    }


def moved(before: dict[str, Any], after: dict[str, Any], path: str = "") -> list[str]:
    """What differs between two answers, one line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [
            line
            for key in keys
            for line in moved(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if before == after else [f"{path}: {before} -> {after}"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--formula", type=int, default=300)
    parser.add_argument("--trace", type=int, default=40)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--engine", choices=("formula", "trace"), help="compare these alone")
    arguments = parser.parse_args()
    if arguments.what == "record":
        found = cases(arguments.formula, arguments.trace, arguments.seed)
        random.Random(0).shuffle(found)
        with gzip.open(arguments.file, "wt", encoding="utf-8") as file:
            for case in found:
                file.write(json.dumps(case | {"answer": answer(case)}) + "\n")
        print(f"{len(found)} predictions recorded")
        return 0
    with gzip.open(arguments.file, "rt", encoding="utf-8") as file:
        known = [json.loads(line) for line in file]
    known = [case for case in known if arguments.engine in (None, case["engine"])]
    different = 0
    for case in known:
        lines = moved(case["answer"], json.loads(json.dumps(answer(case))))
        if lines:
            different += 1
            print(
                f"{case['engine']} {case['name']} {case['fields']}",
                *(f"    {line}" for line in lines[:12]),
                sep="\n",
            )
    print(f"{len(known)} predictions, {len(known) - different} unchanged, {different} different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
