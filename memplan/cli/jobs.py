"""memplan fit jobs.yaml: the cheapest GPU for each job of a file, and the one for all of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from memplan import api
from memplan.planner.answers.verdict import not_counted
from memplan.planner.tables.errors import MemplanError, UsageError, shorten
from memplan.planner.tables.gpus import find_gpu

EXIT_NOTHING_FITS = 1
MOST_JOBS = 200


def jobs_document(model: str) -> dict[str, Any] | None:
    """The parsed file, where MODEL is a file of jobs."""
    if not model.endswith((".yaml", ".yml", ".json")) or not os.path.isfile(model):
        return None
    from memplan.planner.importers.files import read_mapping

    document = read_mapping(Path(model))
    return document if "jobs" in document else None


def answer_jobs(document: dict[str, Any], as_json: bool) -> int:
    """Print the cheapest GPU for each job and for all of them; 1 where one fits no GPU. Raises UsageError."""
    from memplan.planner import __version__
    from memplan.planner.answers.fit.jobs import Job, place_jobs
    from memplan.planner.tables.gpus import common_gpus

    prices = _prices(document.get("prices"))
    entries = document["jobs"]
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(entry, dict) and isinstance(entry.get("model"), str) for entry in entries)
    ):
        raise UsageError(
            "jobs: expected a list of mappings, each with a model and optional Setup fields "
            "(method, micro_batch, sequence_length, ...)"
        )
    if len(entries) > MOST_JOBS:
        raise UsageError(f"jobs: {len(entries):,} of them, expected at most {MOST_JOBS:,}")
    jobs = []
    for number, entry in enumerate(entries, 1):
        fields = {str(key): value for key, value in entry.items() if key not in ("model", "name")}
        try:
            model, setup = api.request(entry["model"], **fields)
            spec = model.spec()
        except MemplanError as error:
            raise type(error)(f"job {number}: {error}") from None
        jobs.append(Job(str(entry.get("name") or f"{number}: {model.name} {setup.method}"), spec, setup))
    cards = [find_gpu(name) for name in prices] or list(common_gpus())
    answer = place_jobs(jobs, cards, prices, api.recorded_accuracy("formula").margin)
    if as_json:
        from memplan.render.json import write

        write({"schema": "memplan.fit/1", "memplan_version": __version__, **answer.to_document()})
    else:
        from memplan.render.console import show
        from memplan.render.jobs import jobs_screen

        show(*jobs_screen(answer))
    for job in answer.jobs:
        if job.not_modelled:
            print(
                f"memplan: no verdict on {shorten(job.name)}: {not_counted(job.not_modelled)}",
                file=sys.stderr,
            )
    return 0 if all(job.smallest or job.at_least for job in answer.jobs) else EXIT_NOTHING_FITS


def _prices(value: Any) -> dict[str, float]:
    """Prices by GPU name, in whatever currency and time the user means."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError("prices: expected a mapping from a GPU name to a number")
    prices = {}
    for name, price in value.items():
        if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price < 10**9:
            raise UsageError(
                f"prices: {find_gpu(str(name)).name} costs {shorten(repr(price))}: expected a number, 0 "
                "or more"
            )
        prices[find_gpu(str(name)).name] = float(price)
    return prices
