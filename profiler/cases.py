"""What runs in a case's own processes: the prediction, on disk before the measurement starts, and the
measurement with its record.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from memplan.planner.tables.errors import MemplanError, UsageError
from memplan.planner.tables.torch_versions import nearest
from memplan.planner.tables.units import gib
from memplan.profiler.align import Step
from memplan.profiler.environment import available_bytes, describe
from memplan.profiler.files import read_document, write_document, write_gzip
from memplan.profiler.naming import gpu_name
from memplan.profiler.record import Failure, Measurement, read_setup, save_in

PREDICTED_SCHEMA = "memplan.predicted-case/1"


def predict(case: Mapping[str, Any], identity: str, path: str, environment: Mapping[str, Any]) -> str:
    """Predict a case with the trace engine, for the device that `environment` describes; write the prediction
    and its steady step's events.

    The document at `path` is `{"for": identity, "prediction": memplan.prediction/1}`, the events lie beside
    it; the path comes back.
    """
    import torch

    from memplan.planner.trace.engine import traced

    torch.set_num_threads(1)  # meta tensors compute nothing, and other predictions run beside this one
    setup = on_this_gpu(read_setup(case["setup"]), environment)
    setup = setup.with_(torch=nearest(torch.__version__))
    prediction, log = traced(case["config"], setup, case["model"])
    document = prediction.to_document()
    document.pop("timeline", None)
    write_gzip(events_file(Path(path)), {"moments": predicted_step(log, setup.gradient_accumulation)})
    write_document(
        Path(path), {"schema": PREDICTED_SCHEMA, "for": identity, "prediction": document}, replace=True
    )
    return path


def events_file(prediction: Path) -> Path:
    """Where the predicted events of a prediction lie."""
    return prediction.with_name(prediction.name.removesuffix(".prediction.json") + ".events.json.gz")


def history_file(prediction: Path) -> Path:
    """Where the real allocator's events go, beside a prediction."""
    return prediction.with_name(prediction.name.removesuffix(".prediction.json") + ".history.json.gz")


def predicted_step(log: Any, micro_steps: int = 1) -> dict[str, list[list[Any]]]:
    """The last traced step's events by moment: [kind, bytes, "module: op"]. Events between two moments belong
    to the earlier one; the last traced micro-step's stand for those of all further ones.
    """
    steps = [mark for mark in log.marks if mark.step >= 0]
    last = max((mark.step for mark in steps), default=-1)
    marks = [mark for mark in steps if mark.step == last]
    ends = [*(mark.begin for mark in marks[1:]), *(mark.end for mark in marks[-1:])]
    spans = [(mark.moment, mark.begin, end) for mark, end in zip(marks, ends, strict=True)]
    passes = [i for i, (moment, _, _) in enumerate(spans) if moment in ("forward", "backward")]
    missing = micro_steps - len(passes) // 2
    if len(passes) > 1 and missing > 0:
        spans[passes[-1] + 1 : passes[-1] + 1] = [spans[i] for i in passes[-2:]] * missing
    found: dict[str, list[list[Any]]] = {}
    for moment, begin, end in spans:
        into = found.setdefault(moment, [])
        for kind, number, nbytes in log.events[begin:end]:
            storage = log.storages[number]
            op = (
                storage.name if storage.component == "temporaries" and storage.name else storage.op
            ).removeprefix("aten.")
            into.append([kind, nbytes, f"{storage.module}: {op}" if storage.module else op])
    return found


def read_step(prediction: Path) -> Step | None:
    """The predicted step beside a prediction; None where there is none."""
    try:
        with gzip.open(events_file(prediction), "rt", encoding="utf-8") as handle:
            moments = json.load(handle)["moments"]
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return Step(
        {name: tuple((kind, nbytes) for kind, nbytes, _ in events) for name, events in moments.items()},
        {name: tuple(owner for _, _, owner in events) for name, events in moments.items()},
    )


def measure(case: Mapping[str, Any], folder: str, prediction: str, unpredicted: str | None = None) -> str:
    """Measure a case and write its record; the record's path. What a library refuses is a record too.

    UsageError means that the record itself could not be written.
    """
    return str(save_in(measured(case, Path(prediction), unpredicted), Path(folder)))


def measured(case: Mapping[str, Any], prediction: Path | None, unpredicted: str | None = None) -> Measurement:
    """A case, measured in this process, with the prediction that lay on the disk before."""
    from memplan.profiler.measure import profile

    started = time.perf_counter()
    setup = read_setup(case["setup"])
    before = None
    if prediction is not None and prediction.exists():
        before = read_document(prediction).get("prediction")
    try:
        _check_host(setup, before)
        result = profile(
            case["config"],
            setup,
            device=setup.device,
            steps=case["steps"],
            cap=case["cap_bytes"],
            name=case["model"],
            case=case["name"],
            snapshot=Path(case["snapshot"]) if case.get("snapshot") else None,
            predicted=read_step(prediction) if prediction is not None else None,
            history=history_file(prediction) if prediction is not None else None,
        )
    except MemplanError as error:
        model = {"name": case["model"], "config": dict(case["config"])}
        result = Measurement(
            case=case["name"],
            model=model,
            setup=setup,
            environment=describe(setup.device),
            outcome="error",
            steps=case["steps"],
            cap_bytes=case["cap_bytes"],
            failure=Failure("refused", str(error)),
        )
    notes = result.warnings + ((f"not predicted: {unpredicted}",) if unpredicted else ())
    return result.with_(
        prediction=before,
        warnings=notes,
        recorded_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        wall_seconds=round(time.perf_counter() - started, 3),
    )


def _check_host(setup: Any, prediction: Mapping[str, Any] | None) -> None:
    """UsageError where a run would need more of the host's memory than is there: a swapping host is worse
    than no measurement.
    """
    if prediction is None:
        return
    needed = int(prediction.get("host_bytes") or 0)
    if setup.device == "cpu":
        needed += int(prediction["peak"]["allocated_bytes"])
    there = available_bytes()
    if there is not None and needed > there:
        raise UsageError(
            f"this run needs {gib(needed)} of host memory, but only {gib(there)} is available: use a "
            "smaller model"
        )


def on_this_gpu(setup: Any, environment: Mapping[str, Any]) -> Any:
    """The setup with the GPU of the environment where it names none, so that the right GPU's kernels are
    predicted.
    """
    from memplan.planner.tables.gpus import find_gpu

    if setup.gpu is not None or not environment.get("gpu"):
        return setup
    try:
        return setup.replaced(gpu=cast(Any, find_gpu(gpu_name(environment) or "")).name)
    except UsageError:
        return setup
