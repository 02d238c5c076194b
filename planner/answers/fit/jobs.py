"""The cheapest GPU for each of several jobs, and the one for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.planner.answers.fit.frontier import need
from memplan.planner.answers.fit.kernels import cannot_run
from memplan.planner.answers.verdict import uncounted_of, withheld
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu


@dataclass(frozen=True, slots=True)
class Job:
    """One run that needs a GPU."""

    name: str
    spec: ModelSpec
    setup: Setup


@dataclass(frozen=True, slots=True)
class PlacedJob:
    """Where one job can run: the smallest GPU, its device bytes there, and the cheapest by the prices given.

    Both are None where none holds it, or where something is not counted: `not_modelled` then says what, and
    no GPU smaller than `at_least` holds it. The bytes are those on the largest GPU where none holds it.
    """

    name: str
    device_bytes: int
    smallest: str | None
    cheapest: str | None
    at_least: str | None = None
    not_modelled: tuple[str, ...] = ()

    def to_document(self, prices: Mapping[str, float]) -> dict[str, Any]:
        """The job in the JSON of `fit`."""
        return {
            "name": self.name,
            "device_bytes": self.device_bytes,
            "smallest": self.smallest,
            "at_least": self.at_least,
            "not_modelled": list(self.not_modelled),
            "cheapest": self.cheapest,
            "price": prices.get(self.cheapest) if self.cheapest else None,
        }


@dataclass(frozen=True, slots=True)
class JobsAnswer:
    """Every job, and the cheapest one GPU for all of them; `prices` by GPU name."""

    jobs: tuple[PlacedJob, ...]
    one_for_all: str | None
    prices: Mapping[str, float]

    def to_document(self) -> dict[str, Any]:
        """The JSON of `fit` for a file of jobs."""
        jobs = [job.to_document(self.prices) for job in self.jobs]
        return {"jobs": jobs, "one_for_all": self.one_for_all, "prices": dict(self.prices)}


def place_jobs(
    jobs: Iterable[Job], cards: Iterable[Gpu], prices: Mapping[str, float], error: float = 0.0
) -> JobsAnswer:
    """Where to run several jobs. GPUs without a price are considered only where no GPU has one; a GPU on
    which something is not counted is never said to hold a job. Raises UsageError where no GPU can run one.
    """
    pool = sorted(
        (gpu for gpu in cards if not prices or gpu.name in prices), key=lambda gpu: gpu.usable_bytes
    )

    def cost(name: str) -> float:
        return prices.get(name, float("inf"))

    found: list[PlacedJob] = []
    common = [gpu.name for gpu in pool]
    for job in jobs:
        placed, holding = _place(job, pool, error)
        cheapest = min(holding, key=cost, default=None) if prices else None
        found.append(
            PlacedJob(
                job.name, placed.device_bytes, placed.smallest, cheapest, placed.at_least, placed.not_modelled
            )
        )
        common = [name for name in common if name in holding]
    one = min(common, key=cost, default=None) if found else None
    return JobsAnswer(tuple(found), one, prices)


def _place(job: Job, pool: Iterable[Gpu], error: float) -> tuple[PlacedJob, list[str]]:
    """The job on the smallest GPU of `pool`, and the names of all that hold it, smallest first."""
    sizes: dict[str, int] = {}
    words: dict[str, tuple[str | None, tuple[str, ...]]] = {}
    refused: list[str] = []
    for gpu in pool:
        if (why := cannot_run(job.spec, job.setup, gpu)) is not None:
            refused.append(f"{gpu.name}: {why}")
            continue
        own = job.setup.with_(gpu=gpu.name) if gpu.capability is not None else job.setup
        needed, missing = need(job.spec, own, error), tuple(uncounted_of(own, gpu))
        sizes[gpu.name] = needed.device_bytes(gpu)
        if needed.fits(gpu):
            words[gpu.name] = withheld("fits", missing), missing
    if not sizes:
        raise UsageError(f"job {job.name}: no GPU asked about can run it: {'; '.join(refused)}")
    holding = [name for name, (word, _) in words.items() if word == "fits"]
    if holding:
        return PlacedJob(job.name, sizes[holding[0]], holding[0], None), holding
    if words:
        first, (_, missing) = next(iter(words.items()))
        return PlacedJob(job.name, sizes[first], None, None, first, missing), []
    return PlacedJob(job.name, list(sizes.values())[-1], None, None), []
