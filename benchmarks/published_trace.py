"""The trace engine against published per-moment peaks: `python benchmarks/published_trace.py [FILE]`, worst first.

FILE is a list of runs as JSON: model, method, gpu, dtypes, rank, batch and `measured_mib` per moment. Default:
../shared/published/t4_lora_qlora.json.
Errors are (predicted - measured) / measured; those of forward, backward and optimizer after subtracting the difference of the loads,
which identical runs do not reproduce either (one quantised model's loads were measured at 1070 to 1078 MiB).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from planner.live.trace import trace
from planner.models import find
from planner.setup import Setup, resolve

DEFAULT = Path(__file__).resolve().parents[1].parent / "shared" / "published" / "t4_lora_qlora.json"
ALIASES = {
    "HuggingFaceTB/SmolLM2-1.7B": "smollm2-1.7b",
    "HuggingFaceTB/SmolLM2-135M": "smollm2-135m",
    "HuggingFaceTB/SmolLM2-360M": "smollm2-360m",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "tinyllama-1.1b",
}
MIB = 2**20
MOMENTS = {"after_load": "load", "forward_peak": "forward", "backward_peak": "backward", "optimizer_peak": "optimizer_step"}
PEAKS = ("peak_allocated", "peak_reserved")


def setup_of(run: Mapping[str, Any]) -> Setup:
    """The Setup of one published run: a plain loop, fp16 weights, k-bit preparation when quantised."""
    quantised = run["method"] == "qlora"
    return resolve({
        "method": run["method"], "recipe": "raw", "gpu": "t4", "weight_dtype": run["weight_dtype"], "autocast": "none",
        "quant_type": "nf4" if quantised else "none", "double_quant": run["double_quant"], "kbit_prepare": quantised,
        "rank": run["rank"], "alpha": run["lora_alpha"], "dropout": run["lora_dropout"], "targets": run["targets"],
        "micro_batch": run["micro_batch"], "sequence_length": run["sequence"], "checkpointing": "non_reentrant",
        "attention": "eager" if run["attention"] == "eager" else "sdpa-efficient", "optimizer": "adamw_torch", "optimizer_mode": "foreach",
        # fp16 weights: no warm-up block, the slack of these loads is that of one segment a tensor. Quantised: from_pretrained's own order.
        "load": "pretrained" if quantised else "random",
    })  # fmt: skip


def predicted_mib(run: Mapping[str, Any]) -> dict[str, float]:
    """What the trace predicts for the names of `measured_mib`."""
    # These runs expanded K and V before the call, as transformers did before it handed grouped heads to torch.
    with patch("transformers.integrations.sdpa_attention.use_gqa_in_sdpa", lambda *a, **k: False):
        prediction = trace(find(ALIASES[run["model"]]).config, setup_of(run), run["model"])
    found = {name: prediction.moment(moment).allocated_bytes / MIB for name, moment in MOMENTS.items()}
    return found | {"peak_allocated": prediction.peak.allocated_bytes / MIB, "peak_reserved": prediction.peak.reserved_bytes / MIB}


def errors(predicted: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Signed error of each name as a fraction; moments of the step net of the load's difference."""
    shift = predicted["after_load"] - measured["after_load"]
    net = {name: (shift if name in MOMENTS and name != "after_load" else 0.0) for name in (*MOMENTS, *PEAKS)}
    return {name: (predicted[name] - net[name] - measured[name]) / measured[name] for name in net}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--only", default="", help="runs whose label contains this")
    arguments = parser.parse_args()
    rows = []
    for run in json.loads(arguments.file.read_text()):
        attention = "eager" if run["attention"] == "eager" else "sdpa"
        label = f"{run['model'].split('/')[1][:14]:14} {run['method']:5} {attention:5} b{run['micro_batch']} s{run['sequence']}"
        if arguments.only not in label:
            continue
        start = time.perf_counter()
        predicted = predicted_mib(run)
        rows.append((label, predicted, run["measured_mib"], errors(predicted, run["measured_mib"]), time.perf_counter() - start))
    rows.sort(key=lambda row: -abs(row[3]["peak_allocated"]))
    names = (*MOMENTS, *PEAKS)
    print(f"{'run':40}" + "".join(f"{name:>28}" for name in names) + "   predicted / measured MiB, error")
    for label, predicted, measured, error, seconds in rows:
        print(f"{label:40}" + "".join(f"{predicted[n]:10.1f}/{measured[n]:8.1f}{error[n]:+9.3%}" for n in names) + f"{seconds:6.1f} s")
    for name in names:
        sizes = [abs(error[name]) for _, _, _, error, _ in rows]
        bias = statistics.mean(error[name] for _, _, _, error, _ in rows)
        print(f"{name:16} median {statistics.median(sizes):8.4%}  worst {max(sizes):8.4%}  bias {bias:+8.4%}")


if __name__ == "__main__":
    main()
