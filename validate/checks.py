"""CHECKS: the kinds of check that a claims file can ask for, each a function from a part to what was found.

The whole language: no expression is executed, no name is imported. `docs/claims.md` describes each kind for
people who write a claims file.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memplan.planner.tables.errors import UsageError, unknown
from memplan.planner.tables.recipes import DEFAULT_RECIPE, RECIPES
from memplan.planner.tables.units import gib
from memplan.profiler.localized_message import LocalizedMessage, said
from memplan.validate.arithmetic import calculate
from memplan.validate.claimsfile import UNITS, Part
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.found import Found
from memplan.validate.matching import comparable, find_records, hint
from memplan.validate.numbers import amount, displayed, number, word
from memplan.validate.others import dry_run, published, published_times, release
from memplan.validate.quantities import Term, read_term

if TYPE_CHECKING:
    from memplan.planner.prediction import Prediction
    from memplan.planner.tables.gpus import Gpu


def _default(part: Part) -> Term:
    args = part.args
    return Term(
        args.get("quantity", "one"),
        part.model,
        part.gpu,
        part.setup,
        part.engine,
        args.get("moment", ""),
        args.get("component", ""),
        args.get("row", ""),
        args.get("times", 1),
    )


def quantity(part: Part, context: EvaluationContext) -> Found:
    """A sum of terms (`of`, or the part's own `quantity`), divided by the sum of `per` where given."""
    default = _default(part)
    above = [read_term(table, default) for table in part.args.get("of", ({},))]
    below = [read_term(table, replace(default, times=1)) for table in part.args.get("per", ())]
    top = sum(term.value(context) for term in above)
    bottom = sum(term.value(context) for term in below) if below else 1
    if bottom == 0:
        raise Missing("division by zero: the quantity under `per` is 0")
    value = top / bottom / UNITS[part.unit]
    value = int(value) if isinstance(top, int) and bottom == 1 and UNITS[part.unit] == 1 else value
    exact = isinstance(part.claimed, int | float) and part.tolerance == 0
    text = amount(value, part.unit, part.claimed if exact else None)  # type: ignore[arg-type]
    if not below:
        return Found(value, text)
    sized = part.unit in ("x", "%") and any(term.quantity in _IN_BYTES for term in (*above, *below))
    over, under = (gib(round(top)), gib(round(bottom))) if sized else (number(top), number(bottom))
    return Found(value, said("{text} ({over} / {under})", text=text, over=over, under=under))


_IN_BYTES = {"peak", "step_peak", "device", "rows", "checkpoint", "host", "usable"}


CLOSE_BYTES = 2**27  # below this a difference is told, since two decimals of GiB would hide it


def fits(part: Part, context: EvaluationContext) -> Found:
    """Whether the run as predicted survives on the GPU: tight counts as fitting, and is said, but not where
    only the prediction's margin makes it tight. Where the tensors alone are too many, nothing is replayed but
    for the words.
    """
    from memplan.planner.answers.verdict import judge, need_of, not_modelled

    if not part.model or not part.gpu:
        raise UsageError("this check needs a model and a gpu")
    gpu = context.gpu(part.gpu)
    asked = part.model, {**part.setup, "gpu": gpu.name}, part.engine  # the GPU chooses kernels
    tensors = context.predict(*asked, replayed=False)
    uncounted = (*tensors.not_modelled, *not_modelled(tensors, gpu))
    room = gpu.usable_bytes - gpu.context_bytes
    if tensors.peak.allocated_bytes > room and not uncounted:
        return Found(False, lambda: _need(part, context.predict(*asked), gpu, False, False))
    prediction = context.predict(*asked)
    survives = need_of(prediction).survives(gpu)
    verdict: str | None = "no"
    if survives or uncounted:
        judged = judge(prediction, gpu)
        verdict = judged.verdict
        if verdict is None:
            raise Missing("no verdict: {why}", why=str(judged.why))
    holds = survives and verdict != "no"
    return Found(holds, _need(part, prediction, gpu, holds, verdict == "tight"))


def _need(part: Part, prediction: Prediction, gpu: Gpu, fitting: bool, tight: bool) -> LocalizedMessage:
    """What a run needs of what a GPU has, in words."""
    from memplan.planner.answers.verdict import device_bytes

    need = device_bytes(prediction, gpu)
    spare = gpu.usable_bytes - need
    far = abs(spare) > CLOSE_BYTES
    close = said("" if far else ", {size} to spare" if spare >= 0 else ", {size} over", size=gib(abs(spare)))
    named = part.over is not None and part.over.key == "gpu"
    template = "needs {need} of {have}{close}{tight}"
    found = said(
        template if named else f"{template} on {{gpu}}",
        need=gib(need),
        have=gib(gpu.usable_bytes),
        close=close,
        tight=said(" (tight)" if tight else ""),
        gpu=displayed(gpu.name),
    )
    if not fitting and prediction.peak.moment != prediction.step_peak.moment:
        step = need - prediction.peak.reserved_bytes + prediction.step_peak.reserved_bytes
        return said("{found}, by loading; the step alone needs {step}", found=found, step=gib(step))
    return found


def setup_field(part: Part, context: EvaluationContext) -> Found:
    """The resolved value of a Setup field: what a method and recipe really mean."""
    document = context.setup(part.model or "llama-7b", part.setup).to_document()
    name = part.args["field"]
    if name not in document:
        raise unknown("Setup field", name, document)
    value = document[name]
    text = ", ".join(value) if isinstance(value, list) else value
    text = "none" if text in (None, "") else text
    recipe = part.setup.get("recipe", DEFAULT_RECIPE)
    source = RECIPES[recipe].sources.get(name)
    template = (
        "{name} = {value} ({recipe} recipe)"
        if source is None
        else "{name} = {value} ({recipe} recipe: {source})"
    )
    return Found(
        text,
        said(template, name=said(name.replace("_", " ")), value=word(text), recipe=recipe, source=source),
    )


def row_dtype(part: Part, context: EvaluationContext) -> Found:
    """The dtypes of the rows of that name, sorted and joined by +."""
    import fnmatch

    prediction = context.predict(part.model, part.setup, part.engine, replayed=False)
    moment = part.args.get("moment", prediction.step_peak.moment)
    rows = [row for row in prediction.moment(moment).rows if fnmatch.fnmatch(row.name, part.args["row"])]
    if not rows:
        return Found(
            "none", said("no row named {row} at {moment}", row=part.args["row"], moment=said(moment))
        )
    dtypes = "+".join(sorted({row.dtype for row in rows}))
    return Found(
        dtypes,
        said(
            "{dtypes}, {size}",
            dtypes=dtypes,
            size=gib(sum(row.bytes for row in rows)),
        ),
    )


NOT_INSTALLED = "{library} is not installed (pip install 'memplan[trace]')"


def library_fact(part: Part, context: EvaluationContext) -> Found:
    """A fact read from the installed libraries by a named probe of `profiler/facts/table.py`."""
    try:
        from memplan.profiler.facts.table import FACTS, read_fact
    except ImportError as error:
        raise Missing(NOT_INSTALLED, library=error.name or str(error)) from None
    name = part.args["fact"]
    if name not in FACTS:
        raise unknown("library fact", name, FACTS)
    try:
        value, evidence = read_fact(name)
    except ImportError as error:
        raise Missing(NOT_INSTALLED, library=error.name or str(error)) from None
    if not isinstance(value, bool | str):
        value = value / UNITS[part.unit]
    return Found(value, evidence)


def arithmetic(part: Part, context: EvaluationContext) -> Found:
    """The value of an expression of numbers. It stands in the part's own unit, a share (`%`) as a plain
    fraction; `expression_unit` says so where it stands in another, such as bytes.
    """
    own = part.args.get("expression_unit", "" if part.unit == "%" else part.unit)
    if own not in UNITS:
        raise unknown("unit", own, UNITS)
    value = calculate(part.args["expression"]) * UNITS[own] / UNITS[part.unit]
    return Found(value, said("{sum} = {value}", sum=part.args["expression"], value=amount(value, part.unit)))


def time_ratio(part: Part, context: EvaluationContext) -> dict[str, Found]:
    """By model and GPU: median step time of records that match `slow` over that of records that match `fast`,
    everything else alike.
    """
    ratios: dict[str, list[float]] = {}
    for one in find_records(context.records, part.args["slow"]):
        for other in find_records(context.records, part.args["fast"]):
            if comparable(one, other) and one.step_seconds and other.step_seconds:
                ratio = statistics.median(one.step_seconds) / statistics.median(other.step_seconds)
                ratios.setdefault(f"{one.model.get('name')} ({one.environment.get('gpu')})", []).append(ratio)
    if not ratios:
        asked = {"slow": hint(part.args["slow"]), "fast": hint(part.args["fast"])}
        raise Missing("no pair of recorded GPU runs of one model and shape: {slow} and {fast}", **asked)
    return {name: _median_ratio(part, found) for name, found in sorted(ratios.items())}


def _median_ratio(part: Part, ratios: list[float]) -> Found:
    median = statistics.median(ratios)
    value = (median - (1 if part.unit == "%" else 0)) / UNITS[part.unit]
    if len(ratios) == 1:
        return Found(value, said("{median:.3f}x in one pair of runs", median=median))
    template = "{median:.3f}x, median of {pairs} pairs (from {low:.3f}x to {high:.3f}x)"
    return Found(value, said(template, median=median, pairs=len(ratios), low=min(ratios), high=max(ratios)))


def measured(part: Part, context: EvaluationContext) -> Found:
    """`metric` of the recorded runs that match: outcome, peak, reserved, seconds; the median where it is a
    number.
    """
    name = part.args["metric"]
    if name not in METRICS:
        raise unknown("metric of a record", name, METRICS)
    values = [
        value
        for record in find_records(context.records, part.args["match"])
        if (value := METRICS[name](record)) is not None
    ]
    if not values:
        raise Missing("no recorded run: {how}", how=hint(part.args["match"]))
    if isinstance(values[0], str):
        return Found("+".join(sorted(set(values))), said("{runs} recorded runs", runs=len(values)))
    value = statistics.median(values) / UNITS[part.unit]
    return Found(
        value,
        said("{value}, median of {runs} recorded runs", value=amount(value, part.unit), runs=len(values)),
    )


METRICS: dict[str, Callable[[Any], Any]] = {
    "outcome": lambda record: record.outcome,
    "peak": lambda record: record.step_peak.allocated_bytes if record.step_peak else None,
    "reserved": lambda record: record.step_peak.reserved_bytes if record.step_peak else None,
    "seconds": lambda record: statistics.median(record.step_seconds) if record.step_seconds else None,
}


def quality(part: Part, context: EvaluationContext) -> Found:
    """What memory cannot decide: always missing, saying which evidence would decide it."""
    raise Missing(said(part.args["needs"].replace("{", "{{").replace("}", "}}")))


@dataclass(frozen=True)
class Kind:
    """How a kind of check is made: `run` finds one thing, `each` several at once by name; `reads` are its
    keys in the file.
    """

    run: Callable[[Part, EvaluationContext], Found] | None
    reads: Mapping[str, tuple[type, ...]]
    needs: tuple[str, ...] = ()
    each: Callable[[Part, EvaluationContext], dict[str, Found]] | None = None


CHECKS: dict[str, Kind] = {
    "quantity": Kind(
        quantity,
        {
            "quantity": (str,),
            "moment": (str,),
            "component": (str,),
            "row": (str,),
            "times": (int, float),
            "of": (list,),
            "per": (list,),
        },
    ),
    "fits": Kind(fits, {}),
    "setup_field": Kind(setup_field, {"field": (str,)}, ("field",)),
    "row_dtype": Kind(row_dtype, {"row": (str,), "moment": (str,)}, ("row",)),
    "library_fact": Kind(library_fact, {"fact": (str,)}, ("fact",)),
    "arithmetic": Kind(arithmetic, {"expression": (str,), "expression_unit": (str,)}, ("expression",)),
    "time_ratio": Kind(None, {"slow": (dict,), "fast": (dict,)}, ("slow", "fast"), time_ratio),
    "measured": Kind(measured, {"metric": (str,), "match": (dict,)}, ("metric", "match")),
    "published": Kind(
        published,
        {"figure": (str,), "per_figure": (str,), "less_figure": (str,), "per": (str,)},
        ("figure",),
    ),
    "published_times": Kind(None, {"slow": (str,), "fast": (str,)}, (), published_times),
    "release": Kind(release, {"feature": (str,), "version": (str,)}, ("feature", "version")),
    "dry_run": Kind(dry_run, {"quantity": (str,), "per_setup": (dict,)}, ("quantity",)),
    "quality": Kind(quality, {"needs": (str,)}, ("needs",)),
}
