"""`--device dry`: the cases of `memplan profile` and of a campaign in a process over the stub libraries.

The build, the steps and the record are those of a GPU; the record's `environment.driver` is "stub". The
interpreter brings a CUDA build of torch; whatever else it lacks is taken from memplan's own environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu, find_gpu
from memplan.profiler.campaign import Targets
from memplan.profiler.case_matrix import Case
from memplan.profiler.dryrun.build import preload, stub_libraries
from memplan.profiler.dryrun.cards import card_environment, check_card
from memplan.profiler.dryrun.interpreter import find_interpreter
from memplan.profiler.dryrun.launch import INSIDE, stub_environment
from memplan.profiler.dryrun.rehearse import kernels_for
from memplan.profiler.isolate import Isolation
from memplan.profiler.record import save_in

TARGETS = Targets(
    describe="memplan.profiler.dryrun.worker:describe", measure="memplan.profiler.dryrun.worker:measure"
)


@dataclass(frozen=True, slots=True)
class Worker:
    """The interpreter that cases run in, and the variables that put it over the stub libraries."""

    python: Path
    environment: Mapping[str, str]

    def isolation(self, preload: Sequence[str]) -> Isolation:
        """A fork server of that interpreter."""
        return Isolation(preload, self.environment, self.python)


def worker_for(gpu: Gpu | None, python: str | None) -> Worker:
    """The worker that plays one GPU (None: an Ampere GPU whose memory does not run out). Raises UsageError
    where the interpreter has no CUDA build of torch, or another version of Python than this one.
    """
    check_card(gpu, 1)
    found = find_interpreter(python)
    if found.python != sys.version_info[:2]:
        theirs, ours = (".".join(map(str, version)) for version in (found.python, sys.version_info[:2]))
        raise UsageError(
            f"{found.path} is Python {theirs}, memplan runs on {ours}: --device dry runs memplan's own step "
            "there, so both must be the same"
        )
    folder = stub_libraries(found.path, found.sites, found.torch, found.cuda)
    card = card_environment(gpu, 1, kernels_for(gpu, found, folder))
    visible = {"CUDA_VISIBLE_DEVICES": "0"}  # the one that is played, whatever hides those of this machine
    return Worker(found.path, {**card, **stub_environment(preload(folder)), **visible})


def gpu_of(cases: Sequence[Case]) -> Gpu | None:
    """The GPU that all cases name; None where none names one. Raises UsageError where they differ: a process
    over the stub libraries plays one.
    """
    names = sorted({case.setup.gpu or "" for case in cases})
    if len(names) > 1:
        said = ", ".join(name or "none" for name in names)
        raise UsageError(f"a dry campaign plays one GPU, its cases name {said}: make a file for each")
    return find_gpu(names[0]) if names and names[0] else None


def describe(device: str) -> dict[str, Any]:
    """The environment of a dry run's record."""
    from memplan.profiler.environment import describe as asked

    return asked("cuda")


def measure(case: Mapping[str, Any], folder: str, prediction: str, unpredicted: str | None = None) -> str:
    """`cases.measure` where integers and Booleans carry true values, as in every dry run. What depends on
    unknown ones is among the record's warnings.
    """
    from memplan.profiler.cases import measured

    sys.path.insert(0, str(INSIDE))
    os.environ.setdefault("MEMPLAN_DRYRUN_REPORTS", os.path.dirname(prediction))
    names = ("kernels", "values", "convolutions")
    kernels, values, convolutions = (import_module(f"memplan_inside.{name}") for name in names)
    values.install()
    kernels.without_cudnn_attention()
    convolutions.install()
    found = measured(case, Path(prediction), unpredicted)
    found = found.with_(warnings=(*found.warnings, *sorted(values.notes)))
    return str(save_in(found, Path(folder)))
