"""What a prediction's uncertainty rests on: the recorded runs of the same engine, the nearest of them, or
that none resembles it.

accuracy.json, written by `memplan validate --update`, holds one line a reconciled run. An error measured on
one GPU's generation is never given as the error of another's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.planner.prediction import Prediction
from memplan.planner.tables.accuracy import Accuracy
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.validate.likeness import generation

if TYPE_CHECKING:
    from memplan.profiler.record import Measurement
    from memplan.validate.reconcile import Reconciliation

SHIPPED = Path(__file__).with_name("accuracy.json")
SCHEMA = "memplan.accuracy/1"
# beyond this distance a run does not resemble a prediction: another kind of method alone is, another family
# alone is not
FAR = 1.75


@dataclass(frozen=True)
class Run:
    """One reconciled run as evidence: what decides how far another one is from it, and its errors as
    fractions.
    """

    case: str
    engine: str
    family: str
    parameters: int
    method: str
    dtype: str
    gpu: str | None
    generation: int | None  # major CUDA capability; None on a CPU
    allocated_error: float | None
    device_error: float | None
    verdict: str
    development: bool = False


def runs_of(measurements: Sequence[Measurement], reconciliations: Sequence[Reconciliation]) -> list[Run]:
    """The evidence that reconciled runs leave, by engine and case. A dry run is evidence of no GPU."""
    by_case = {measurement.case: measurement for measurement in measurements}
    found = []
    for done in (done for done in reconciliations if not done.dry):
        measurement = by_case[done.case]
        error = {name: d.error for name, d in done.tiers.items()}
        found.append(
            Run(
                done.case,
                done.engine,
                str((measurement.model.get("config") or {}).get("model_type", "?")),
                int(measurement.model.get("parameters") or measurement.total_parameters or 0),
                done.method,
                measurement.setup.weight_dtype,
                done.gpu,
                _major(measurement.environment.get("capability")),
                error.get("allocated"),
                error.get("device"),
                done.verdict,
                done.development,
            )
        )
    return sorted(found, key=lambda run: (run.engine, run.case))


def _major(capability: Any) -> int | None:
    return int(capability[0]) if isinstance(capability, list | tuple) and capability else None


def write(runs: Sequence[Run], path: Path = SHIPPED) -> None:
    """Write the accuracy data that ships with the package."""
    document = {"schema": SCHEMA, "runs": [asdict(run) for run in runs]}
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read(path: Path = SHIPPED) -> tuple[Run, ...]:
    """The recorded evidence; empty where none was shipped. Raises UsageError for another schema."""
    if not path.is_file():
        return ()
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{path}: expected a document of schema {SCHEMA}, found {document.get('schema')!r}")
    return tuple(Run(**run) for run in document["runs"])


@cache
def shipped() -> tuple[Run, ...]:
    """The recorded runs whose errors ship with the package, read once."""
    return read()


def accuracy_of_engine(engine: str, runs: Sequence[Run] | None = None) -> Accuracy:
    """The recorded accuracy of an engine over every GPU run that counts, whatever the prediction."""
    counted = [
        run
        for run in (shipped() if runs is None else runs)
        if run.engine == engine
        and run.gpu is not None
        and not run.development
        and run.allocated_error is not None
    ]
    if not counted:
        return Accuracy(evidence=f"no recorded run of the {engine} engine on a GPU")
    return _accuracy(counted, f"{_runs(counted)} on GPUs", None)


def _runs(runs: Sequence[Run]) -> str:
    return f"{len(runs)} recorded run{'' if len(runs) == 1 else 's'}"


def _accuracy(runs: Sequence[Run], evidence: str, nearest: str | None) -> Accuracy:
    """Median and worst allocated error, and worst device error, of runs that have the former."""
    from statistics import median  # brings in half the standard library: only where there is something to say

    errors = [abs(run.allocated_error) for run in runs if run.allocated_error is not None]
    device = [abs(run.device_error) for run in runs if run.device_error is not None]
    return Accuracy(median(errors), max(errors), len(errors), evidence, nearest, max(device, default=None))


def _counted(runs: Sequence[Run], engine: str, on_cpu: bool) -> list[Run]:
    """The runs whose errors count for an engine and a kind of device."""
    return [
        run
        for run in runs
        if run.engine == engine
        and run.allocated_error is not None
        and not run.development
        and (run.gpu is None) == on_cpu
    ]


def accuracy_of(prediction: Prediction, runs: Sequence[Run] | None = None) -> Accuracy:
    """The recorded accuracy of this engine for predictions like this one: median and worst over comparable
    runs, and the nearest one.

    Where no run resembles it, no error is given (it would be another's): the worst of the comparable runs
    still widens the verdict's band.
    """
    wanted = _run_of(prediction)
    on_cpu = prediction.setup.device == "cpu"
    same = _counted(shipped() if runs is None else runs, prediction.engine, on_cpu)
    if not same:
        device = "CPU" if on_cpu else "GPU"
        return Accuracy(evidence=f"no recorded run of the {prediction.engine} engine on a {device}")
    comparable = [run for run in same if wanted.generation is None or run.generation == wanted.generation]
    if not comparable:
        cards = ", ".join(sorted({str(run.gpu) for run in same}))
        return Accuracy(evidence=f"no recorded run on a GPU like {wanted.gpu} (recorded: {cards})")
    nearest = min(comparable, key=lambda run: (distance(wanted, run), run.case))
    cards = ", ".join(sorted({run.gpu or "CPU" for run in comparable}))
    if distance(wanted, nearest) <= FAR:
        return _accuracy(comparable, f"{_runs(comparable)} on {cards}", nearest.case)
    known = _accuracy(comparable, "", None)
    return Accuracy(
        evidence=f"no recorded run resembles this ({_runs(comparable)} on {cards})", device_error=known.margin
    )


def _run_of(prediction: Prediction) -> Run:
    """A prediction in the terms in which runs are compared."""
    setup, extra = prediction.setup, prediction.model.extra
    return Run(
        "this",
        prediction.engine,
        str(extra.get("model_type", prediction.model.architecture)),
        prediction.model.parameters,
        setup.method,
        setup.weight_dtype,
        setup.gpu,
        generation(setup),
        None,
        None,
        "",
    )


def distance(wanted: Run, run: Run) -> float:
    """How unlike two runs are: 2 for another kind of method, 1 each for another family and another GPU
    generation, half for another dtype or method of the same kind, and half a doubling of the parameters.
    """
    apart = 0.0 if _same_family(wanted.family, run.family) else 1.0
    apart += 0.0 if wanted.method == run.method else 0.5 if _kind(wanted.method) == _kind(run.method) else 2.0
    apart += 0.0 if wanted.dtype == run.dtype else 0.5
    apart += 0.0 if wanted.generation in (None, run.generation) else 1.0
    if wanted.parameters and run.parameters:
        apart += 0.5 * abs(math.log2(wanted.parameters / run.parameters))
    return apart


def _same_family(one: str, other: str) -> bool:
    """`llama` and `LlamaForCausalLM` are one family: predictions may know the class alone."""
    a, b = (
        name.lower().replace("_", "").removesuffix("forcausallm").removesuffix("lmheadmodel")
        for name in (one, other)
    )
    return a == b


def _kind(method: str) -> tuple[str, bool]:
    row = METHODS.get(method)
    return (row.trains, row.quantized) if row else ("?", False)


def summary(runs: Sequence[Run]) -> Mapping[str, int]:
    """How many runs of each engine count and how many are of the development set."""
    return {
        f"{run.engine}{' (development set)' if run.development else ''}": sum(
            r.engine == run.engine and r.development == run.development for r in runs
        )
        for run in runs
    }
