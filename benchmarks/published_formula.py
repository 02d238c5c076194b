"""The formula engine against published per-moment peaks: `python benchmarks/published_formula.py [FILE]`,
worst first.

FILE is a list of runs as JSON: model, method, gpu, dtypes, rank, batch and `measured_mib` per moment.
Default: ../shared/published/t4_lora_qlora.json, which is no part of the project: absent, the script says so
and ends. Errors are (predicted - measured) / measured of the allocated peak. Loads of one quantized model
differ by up to 1 % between identical runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.tables.units import MIB
from memplan.validate.development import MOMENTS, setup_of

DEFAULT = Path(__file__).resolve().parents[1].parent / "shared" / "published" / "t4_lora_qlora.json"


def predicted_mib(run: Mapping[str, Any]) -> dict[str, float]:
    """What the formula predicts for the names of `measured_mib`."""
    prediction = plan(find(run["model"]).spec(), setup_of(run))
    found = {name: prediction.moment(moment).allocated_bytes / MIB for name, moment in MOMENTS.items()}
    return found | {"peak_allocated": prediction.step_peak.allocated_bytes / MIB}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT)
    arguments = parser.parse_args()
    if not arguments.file.is_file():
        print(
            f"{arguments.file} is not here: it is no part of the project, so there is nothing to compare with"
        )
        return
    rows = []
    for run in json.loads(arguments.file.read_text()):
        attention = "eager" if run["attention"] == "eager" else "sdpa"
        label = (
            f"{run['model'].split('/')[1][:14]:14} {run['method']:5} {attention:5} b{run['micro_batch']} "
            f"s{run['sequence']}"
        )
        predicted, measured = predicted_mib(run), run["measured_mib"]
        rows.append(
            (label, predicted, measured, {name: predicted[name] / measured[name] - 1 for name in predicted})
        )
    rows.sort(key=lambda row: -abs(row[3]["peak_allocated"]))
    names = (*MOMENTS, "peak_allocated")
    print(f"{'run':40}" + "".join(f"{name:>27}" for name in names) + "   predicted / measured MiB, error")
    for label, predicted, measured, error in rows:
        print(
            f"{label:40}"
            + "".join(f"{predicted[n]:10.1f}/{measured[n]:8.1f} {error[n]:+7.2%}" for n in names)
        )
    for name in names:
        found = [abs(row[3][name]) for row in rows]
        print(
            f"{name:16} median {statistics.median(found):.2%}  worst {max(found):.2%}  of {len(found)} runs"
        )


if __name__ == "__main__":
    main()
