"""A campaign's three jobs without torch, for tests: what a case does is told by its name. The children import
this module by its name.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.profiler.campaign import Targets
from memplan.profiler.case_matrix import CaseList, expand
from memplan.profiler.record import MeasuredMoment, MeasuredPeak, Measurement, read_setup, save_in

TARGETS = Targets("campaign_fakes:describe", "campaign_fakes:predict", "campaign_fakes:measure")
MIB = 2**20
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
ENVIRONMENT = {"device": "cpu", "gpu": None, "versions": {"torch": "0"}, "total_bytes": 2**33}
TRUTH = 1000 * MIB  # the smallest cap that survives
PREDICTION = {"engine": "trace", "smallest_capacity_bytes": 1600 * MIB, "peak": {"context_bytes": 600 * MIB}}
PIDS = "MEMPLAN_TEST_PIDS"  # names a folder where each measuring process leaves its id


def many(count: int, steps: int = 1, **named: Any) -> CaseList:
    """`count` cases that differ in rank; predicting one takes `steps` milliseconds, measuring it as many."""
    ranks = {"rank": list(range(1, count + 1))}
    return expand(
        {
            "device": "cpu",
            "models": {"tiny": TINY},
            "steps": steps,
            "cases": [{"model": "tiny", "grid": ranks, **named}],
        },
        "test",
    )


def describe(device: str) -> dict[str, Any]:
    if device == "cuda" and "used_before_the_fork" in sys.modules:
        raise UsageError("no CUDA GPU here (torch sees none)")
    return ENVIRONMENT


def predict(case: Mapping[str, Any], identity: str, path: str, environment: Mapping[str, Any]) -> None:
    if case["name"] == "unpredictable":
        raise UsageError("no rule for this")
    time.sleep(case["steps"] / 1000)
    Path(path).write_text(json.dumps({"for": identity, "prediction": PREDICTION}))


def measure(case: Mapping[str, Any], folder: str, prediction: str, unpredicted: str | None = None) -> str:
    if os.environ.get(PIDS):
        (Path(os.environ[PIDS]) / str(os.getpid())).touch()
    before = None if unpredicted else json.loads(Path(prediction).read_text())["prediction"]
    _mishap(case["name"])
    time.sleep(case["steps"] / 1000)
    peak = MeasuredPeak("load", 1)
    refused = case["cap_bytes"] is not None and case["cap_bytes"] < TRUTH
    result = Measurement(
        case=case["name"],
        model={"name": case["model"], "config": case["config"]},
        setup=read_setup(case["setup"]),
        environment=ENVIRONMENT,
        outcome="oom" if refused else "ok",
        cap_bytes=case["cap_bytes"],
        steps=case["steps"],
        peak=peak,
        step_peak=peak,
        prediction=before,
        moments=(MeasuredMoment("load", 1),),
        recorded_at=os.urandom(8).hex(),
        warnings=(unpredicted,) if unpredicted else (),
    )
    return str(save_in(result, Path(folder)))


def _mishap(name: str) -> None:
    """What the case of that name does to its process."""
    if name == "crash":
        os.abort()
    if name == "hang":
        time.sleep(60)
    if name == "library":
        print("Error out of memory at line 90 in file pythonInterface.cpp")
        os._exit(1)
    if name == "full":
        raise UsageError("cannot write it: the disk is full")
