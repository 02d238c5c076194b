"""Runs that others measured and published as plain rows, read as measurements of the development set: they
guided the design, so they are shown and never counted toward a tier.

A row has model, method, gpu, dtypes, rank, batch, sequence, `measured_mib` by moment and `source`
(fitcheck-llm 0.3.1's T4 sweep has them).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.units import MIB
from memplan.profiler.record import MeasuredMoment, MeasuredPeak, Measurement

MOMENTS = {
    "after_load": "load",
    "forward_peak": "forward",
    "backward_peak": "backward",
    "optimizer_peak": "optimizer_step",
}
NEEDED = (
    "model",
    "method",
    "gpu",
    "weight_dtype",
    "rank",
    "targets",
    "micro_batch",
    "sequence",
    "measured_mib",
    "source",
)


def is_rows(document: Any) -> bool:
    """Whether a JSON document is a list of such rows."""
    return (
        isinstance(document, list)
        and bool(document)
        and isinstance(document[0], dict)
        and "measured_mib" in document[0]
    )


def read_rows(path: Path) -> list[Measurement]:
    """Every row of the file as a Measurement. Raises UsageError naming file, row and key."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    measurements = []
    for number, row in enumerate(rows, start=1):
        missing = [key for key in NEEDED if key not in row] if isinstance(row, dict) else ["a JSON object"]
        if missing:
            raise UsageError(f"{path}, row {number}: {missing[0]} is missing")
        sizes = row["measured_mib"]
        if not isinstance(sizes, dict) or not all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in sizes.values()
        ):
            raise UsageError(
                f"{path}, row {number}: measured_mib is {shorten(repr(sizes))}, expected an object of sizes "
                "in MiB"
            )
        try:
            measurements.append(_measurement(row, number))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}, row {number}: {type(error).__name__} {shorten(str(error))}") from None
        except UsageError as error:
            raise UsageError(f"{path}, row {number}: {error}") from None
    return measurements


def setup_of(row: Mapping[str, Any]) -> Setup:
    """The Setup of a row: a plain loop, k-bit preparation when quantized, outputs freed after each step."""
    quantized = row["method"] == "qlora"
    return resolve(
        {
            "method": row["method"],
            "recipe": "raw",
            "gpu": "t4",
            # The rows name no version of torch. SmolLM2-360M with eager attention, 1 x 4,096 tokens, reserved
            # 7,304 MiB: the address order of 2.11 gives that, the creation order of 2.12 gives 5,576.
            "torch": "2.11",
            "weight_dtype": row["weight_dtype"],
            "autocast": "none",
            "quant_type": "nf4" if quantized else "none",
            "double_quant": bool(row.get("double_quant")),
            "kbit_prepare": quantized,
            "rank": row["rank"],
            "alpha": row["lora_alpha"],
            "dropout": row["lora_dropout"],
            "targets": row["targets"],
            "micro_batch": row["micro_batch"],
            "sequence_length": row["sequence"],
            "checkpointing": "non_reentrant",
            "attention": "eager" if row["attention"] == "eager" else "sdpa-efficient",
            "optimizer": "adamw_torch",
            "optimizer_mode": "foreach",
            # fp16: no warm-up block, the slack of these loads is one segment a tensor; quantized:
            # from_pretrained's own order
            "load": "pretrained" if quantized else "random",
        }
    )


def _measurement(row: Mapping[str, Any], number: int) -> Measurement:
    measured = {name: round(value * MIB) for name, value in row["measured_mib"].items()}
    model = find(row["model"])
    moments = tuple(MeasuredMoment(moment, measured[name]) for name, moment in MOMENTS.items())
    top = max(moments[1:], key=lambda moment: moment.allocated_bytes)
    peak = MeasuredPeak(
        top.name, measured["peak_allocated"], measured["peak_reserved"], measured["cuda_context"]
    )
    expanded = (
        ()
        if row["attention"] == "eager"
        else ("keys and values were expanded before the attention call, as that transformers did",)
    )
    return Measurement(
        case=(
            f"{model.name} {row['method']} b{row['micro_batch']} s{row['sequence']} "
            f"{row['attention'].split()[0]} #{number}"
        ),
        model={"name": model.name, "config": model.config},
        setup=setup_of(row),
        environment={"gpu": row["gpu"], "versions": {}, "capability": [7, 5]},
        outcome="ok",
        steps=1,
        peak=peak,
        step_peak=peak,
        moments=moments,
        trainable_parameters=row.get("trainable_parameters"),
        total_parameters=row.get("total_parameters"),
        step_seconds=(row["step_seconds"],) if row.get("step_seconds") else (),
        warnings=expanded,
        extra={"development": True, "source": row["source"], "expanded_keys": bool(expanded)},
    )
