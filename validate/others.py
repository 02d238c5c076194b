"""Checks that rest on what others ran or published, and on dry runs: figures, times, releases of libraries.

Figures and times are `published_data/runs.jsonl` and `published.toml`; releases are `releases.toml`; dry runs
are `published_data/claim_dry_runs.jsonl`, made by `benchmarks/claims_dryrun.py` of the claims' own setups.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.planner.tables.errors import UsageError, unknown
from memplan.planner.tables.units import gib
from memplan.profiler.localized_message import said
from memplan.validate.claimsfile import UNITS, Part
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.found import Found
from memplan.validate.numbers import amount, displayed

if TYPE_CHECKING:
    from memplan.validate.published import Figure, PublishedRun

HERE = Path(__file__).parent
DRY_RUNS = HERE / "published_data" / "claim_dry_runs.jsonl"
PER = ("parameters", "linear_parameters")


def published(part: Part, context: EvaluationContext) -> Found:
    """A figure that others published, by its id; less a second one (`less_figure`), over another
    (`per_figure`), or over `per` of the part's model: parameters, linear_parameters.
    """
    args = part.args
    figure = _figure(args["figure"])
    size: float = figure.published_bytes
    sources = [figure.source]
    if "less_figure" in args:
        other = _figure(args["less_figure"])
        size -= other.published_bytes
        sources.append(other.source)
    if "per_figure" in args:
        other = _figure(args["per_figure"])
        value = size / other.published_bytes / UNITS[part.unit]
        template = "{value} published ({one} / {other}): {source}"
        told = {"one": gib(round(size)), "other": gib(other.published_bytes)}
        sources.append(other.source)
        return Found(value, said(template, value=amount(value, part.unit), source=_list(sources), **told))
    value = size / _divisor(part, figure, context) / UNITS[part.unit]
    text = said("{value} published: {source}", value=amount(value, part.unit), source=_list(sources))
    return Found(value, text)


def _divisor(part: Part, figure: PublishedRun | Figure, context: EvaluationContext) -> float:
    """What a published size is divided by: 1, or a count of the model's parameters."""
    from memplan.planner.inputs.models import index
    from memplan.validate.quantities import QUANTITIES, Term

    per = part.args.get("per", "parameters" if part.unit.endswith("/parameter") else "")
    if not per:
        return 1
    if per not in PER:
        raise unknown("what a published figure is divided by", per, PER)
    model = part.model or figure.model
    if per == "linear_parameters":
        return QUANTITIES[per](Term(per, model), context)
    return float(index()[model]["parameters"])


def _list(sources: list[str]) -> str:
    """Sources in one string, each once."""
    return "; ".join(dict.fromkeys(sources))


def _figure(name: str) -> PublishedRun | Figure:
    """A published figure by its id. Raises UsageError where there is none."""
    from memplan.validate.published import figures

    if name not in figures():
        raise unknown("published figure", name, figures())
    return figures()[name]


def published_times(part: Part, context: EvaluationContext) -> dict[str, Found]:
    """By model and GPU: how many times as long one method took as another (`%`: less 100) in runs that others
    published; by default QLoRA as LoRA.
    """
    from memplan.validate.published import times

    slow, fast = part.args.get("slow", "qlora"), part.args.get("fast", "lora")
    found = {}
    for one in times(slow, fast):
        ratio, long, short = one.pair(slow, fast)
        value = (ratio - (1 if part.unit == "%" else 0)) / UNITS[part.unit]
        told = {"ratio": ratio, "slow": long, "fast": short, "unit": said(one.unit)}
        found[one.id] = Found(value, said("{ratio:.3f}x ({slow:g} / {fast:g} {unit})", **told))
    if not found:
        raise Missing("no published pair of runs by {slow} and {fast}", slow=slow, fast=fast)
    return found


@cache
def _releases() -> Mapping[str, Mapping[str, Any]]:
    document = tomllib.loads((HERE / "releases.toml").read_text(encoding="utf-8"))
    return {row["id"]: row for row in document["feature"]}


def release(part: Part, context: EvaluationContext) -> Found:
    """Whether a release of a library has a feature, by the first one in whose source it was read."""
    name, version = part.args["feature"], part.args["version"]
    if name not in _releases():
        raise unknown("feature of a release", name, _releases())
    row = _releases()[name]
    has = _numbers(version) >= _numbers(row["since"])
    template = "{library} {version} has it: {has}; it came between {before} and {since} ({source})"
    told = {key: row[key] for key in ("library", "before", "since", "source")}
    if _numbers(row["before"]) < _numbers(version) < _numbers(row["since"]):
        raise Missing("{library} {version} was not read", library=row["library"], version=version)
    return Found(has, said(template, version=version, has=said("yes" if has else "no"), **told))


def _numbers(version: str) -> tuple[int, ...]:
    """A version's numbers. Raises UsageError for what has none."""
    try:
        return tuple(int(one) for one in version.split("."))
    except ValueError:
        raise UsageError(f"version '{version}': expected numbers such as 0.41.1") from None


def dry_key(model: str, gpu: str, setup: Mapping[str, Any]) -> str:
    """What a dry run is found by: the model, the GPU that was played, the Setup fields that were given."""
    return json.dumps([model, gpu, {k: v for k, v in setup.items() if k != "gpu"}], sort_keys=True)


@cache
def _dry_runs() -> Mapping[str, Mapping[str, Any]]:
    lines = DRY_RUNS.read_text(encoding="utf-8").splitlines() if DRY_RUNS.is_file() else ()
    rows = [json.loads(line) for line in lines]
    return {dry_key(row["model"], row["gpu"], row["setup"]): row for row in rows}


def dry_run(part: Part, context: EvaluationContext) -> Found:
    """What a dry run of the part's own setup allocated or reserved; over that of `per_setup` laid over it.
    `device` adds the GPU's CUDA context, `fits` says whether that is within the usable bytes.
    """
    name = part.args["quantity"]
    if name not in _DRY:
        raise unknown("quantity of a dry run", name, _DRY)
    gpu = context.gpu(part.gpu)
    row = _dry_row(part.model, gpu.name, part.setup)
    versions = f"torch {row['versions']['torch']}"
    if row["outcome"] == "oom" and name == "fits":
        template = "out of memory on {gpu} ({have}) in a dry run ({versions})"
        return Found(
            False, said(template, gpu=displayed(gpu.name), have=gib(gpu.usable_bytes), versions=versions)
        )
    if row["outcome"] != "ok":
        raise Missing("the dry run ended with {outcome}", outcome=row["outcome"])
    with_context = row["reserved"] + gpu.context_bytes
    if name == "fits":
        template = "needs {need} of {have} on {gpu} in a dry run ({versions})"
        told = {"need": gib(with_context), "have": gib(gpu.usable_bytes), "gpu": displayed(gpu.name)}
        return Found(with_context <= gpu.usable_bytes, said(template, versions=versions, **told))
    size = with_context if name == "device" else row[name]
    if "per_setup" not in part.args:
        value = size / UNITS[part.unit]
        text = said("{value} in a dry run ({versions})", value=amount(value, part.unit), versions=versions)
        return Found(value, text)
    other = _dry_row(part.model, gpu.name, {**part.setup, **part.args["per_setup"]})[name]
    value = size / other / UNITS[part.unit]
    template = "{value} in dry runs ({one} / {other}; {versions})"
    told = {"one": gib(size), "other": gib(other), "versions": versions}
    return Found(value, said(template, value=amount(value, part.unit), **told))


_DRY = ("allocated", "reserved", "device", "fits")


def _dry_row(model: str, gpu: str, setup: Mapping[str, Any]) -> Mapping[str, Any]:
    row = _dry_runs().get(dry_key(model, gpu, setup))
    if row is None:
        raise Missing("no dry run of this setup: python benchmarks/claims_dryrun.py --python CUDA_PYTHON")
    return row
