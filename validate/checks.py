"""CHECKS: the kinds of check that a claims file can ask for, each a function from a part to what was found.

The whole language: no expression is executed, no name is imported. `docs/claims.md` describes each kind for people who write a claims file.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from planner.errors import UsageError, unknown
from planner.units import gib
from validate.arithmetic import calculate
from validate.claimsfile import UNITS, Part
from validate.lab import Lab, Missing
from validate.matching import find_records, hint
from validate.quantities import Term, read_term

Value = int | float | bool | str


@dataclass(frozen=True)
class Found:
    """What a check found, in the part's unit, and the numbers it came from in words."""

    value: Value
    evidence: str


def number(value: float) -> str:
    """A number as people write it: whole ones with commas, others with four significant digits."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.1f}"


def shown(value: Value, unit: str = "") -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{number(value)}{'' if unit in ('', 'x', '%') else ' '}{unit}"


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


def quantity(part: Part, lab: Lab) -> Found:
    """A sum of terms (`of`, or the part's own `quantity`), divided by the sum of `per` where given."""
    default = _default(part)
    above = [read_term(table, default) for table in part.args.get("of", ({},))]
    below = [read_term(table, replace(default, times=1)) for table in part.args.get("per", ())]
    top = sum(term.value(lab) for term in above)
    bottom = sum(term.value(lab) for term in below) if below else 1
    if bottom == 0:
        raise Missing("nothing to divide by: the quantity under `per` is 0")
    value = top / bottom / UNITS[part.unit]
    value = int(value) if isinstance(top, int) and bottom == 1 and UNITS[part.unit] == 1 else value
    text = shown(value, part.unit)
    if below:
        sized = part.unit in ("x", "%") and any(term.quantity in _IN_BYTES for term in (*above, *below))
        text += f" ({gib(round(top))} / {gib(round(bottom))})" if sized else f" ({number(top)} / {number(bottom)})"
    return Found(value, text)


_IN_BYTES = {"peak", "step_peak", "device", "rows", "checkpoint", "host", "usable"}


CLOSE_BYTES = 2**27  # below this a difference is told, since two decimals of GiB would hide it


def fits(part: Part, lab: Lab) -> Found:
    """Whether the predicted device peak is within the card's usable bytes (tight counts as fitting, and is said)."""
    from planner.verdict import device_bytes, judge

    if not part.model or not part.gpu:
        raise UsageError("this check needs a model and a gpu")
    gpu = lab.gpu(part.gpu)
    prediction = lab.predict(part.model, part.setup, part.engine)
    word = judge(prediction, gpu).verdict
    need = device_bytes(prediction, gpu)
    spare = gpu.usable_bytes - need
    close = "" if abs(spare) > CLOSE_BYTES else f", {gib(abs(spare))} {'to spare' if spare >= 0 else 'too much'}"
    evidence = f"{gib(need)} of {gib(gpu.usable_bytes)}{close}{' (tight)' if word == 'tight' else ''} on {gpu.name}"
    return Found(word != "no", evidence)


def setup_field(part: Part, lab: Lab) -> Found:
    """The resolved value of a Setup field: what a method and recipe really mean."""
    document = lab.setup(part.model or "llama-7b", part.setup).to_document()
    name = part.args["field"]
    if name not in document:
        raise unknown("Setup field", name, document)
    value = document[name]
    text = ", ".join(value) if isinstance(value, list) else value
    return Found("none" if text in (None, "") else text, f"{name} = {text or 'none'} ({part.setup.get('recipe', 'hf')} recipe)")


def row_dtype(part: Part, lab: Lab) -> Found:
    """The dtypes of the rows of that name, sorted and joined by +."""
    import fnmatch

    prediction = lab.predict(part.model, part.setup, part.engine)
    moment = part.args.get("moment", prediction.step_peak.moment)
    rows = [row for row in prediction.moment(moment).rows if fnmatch.fnmatch(row.name, part.args["row"])]
    if not rows:
        return Found("none", f"no row named {part.args['row']} at {moment}")
    dtypes = "+".join(sorted({row.dtype for row in rows}))
    return Found(dtypes, f"{rows[0].name}: {dtypes}, {gib(sum(row.bytes for row in rows))}")


def library_fact(part: Part, lab: Lab) -> Found:
    """A fact read from the installed libraries by a named probe of `profiler/facts/table.py`."""
    try:
        from profiler.facts.table import FACTS, read_fact
    except ImportError as error:
        raise Missing(f"{error.name or error} is not installed (pip install 'memplan[trace]')") from None
    name = part.args["fact"]
    if name not in FACTS:
        raise unknown("library fact", name, FACTS)
    try:
        value, evidence = read_fact(name)
    except ImportError as error:
        raise Missing(f"{error.name or error} is not installed (pip install 'memplan[trace]')") from None
    if not isinstance(value, bool | str):
        value = value / UNITS[part.unit]
    return Found(value, evidence)


def arithmetic(part: Part, lab: Lab) -> Found:
    value = calculate(part.args["expression"]) / UNITS[part.unit]
    return Found(value, f"{part.args['expression']} = {shown(value, part.unit)}")


def time_ratio(part: Part, lab: Lab) -> Found:
    """Median step time of records that match `slow` over that of records that match `fast`, same GPU and same everything else."""
    pairs = []
    for one in find_records(lab.records, part.args["slow"]):
        for other in find_records(lab.records, part.args["fast"]):
            if _comparable(one, other) and one.step_seconds and other.step_seconds:
                pairs.append((statistics.median(one.step_seconds) / statistics.median(other.step_seconds), one.case, other.case))
    if not pairs:
        raise Missing(f"no pair of recorded GPU runs of one model and shape: {hint(part.args['slow'])} and {hint(part.args['fast'])}")
    pairs.sort()
    ratio, one_case, other_case = pairs[len(pairs) // 2]
    value = (ratio - (1 if part.unit == "%" else 0)) / UNITS[part.unit]
    spread = f" (from {pairs[0][0]:.3f}x to {pairs[-1][0]:.3f}x)" if len(pairs) > 1 else ""
    return Found(value, f"median of {len(pairs)} pairs, {one_case} against {other_case}: {ratio:.3f}x{spread}")


_SAME = ("micro_batch", "sequence_length", "checkpointing", "attention", "loss")


def _comparable(one: Any, other: Any) -> bool:
    same = all(getattr(one.setup, name) == getattr(other.setup, name) for name in _SAME)
    return same and one.model.get("name") == other.model.get("name") and one.environment.get("gpu") == other.environment.get("gpu")


def measured(part: Part, lab: Lab) -> Found:
    """`metric` of the recorded runs that match: outcome, peak, reserved, seconds; the median where it is a number."""
    name = part.args["metric"]
    if name not in METRICS:
        raise unknown("metric of a record", name, METRICS)
    values = [value for record in find_records(lab.records, part.args["match"]) if (value := METRICS[name](record)) is not None]
    if not values:
        raise Missing(f"no recorded run: {hint(part.args['match'])}")
    if isinstance(values[0], str):
        return Found("+".join(sorted(set(values))), f"{len(values)} recorded runs")
    value = statistics.median(values) / UNITS[part.unit]
    return Found(value, f"{shown(value, part.unit)}, median of {len(values)} recorded runs")


METRICS: dict[str, Callable[[Any], Any]] = {
    "outcome": lambda record: record.outcome,
    "peak": lambda record: record.step_peak.allocated_bytes if record.step_peak else None,
    "reserved": lambda record: record.step_peak.reserved_bytes if record.step_peak else None,
    "seconds": lambda record: statistics.median(record.step_seconds) if record.step_seconds else None,
}


def published(part: Part, lab: Lab) -> Found:
    """A figure that others published, by its id in published.toml."""
    from validate.published import figures

    known = {figure.id: figure for figure in figures()}
    if part.args["figure"] not in known:
        raise unknown("published figure", part.args["figure"], known)
    figure = known[part.args["figure"]]
    value = figure.value_bytes / UNITS[part.unit]
    return Found(value, f"{shown(value, part.unit)} published: {figure.source}")


def quality(part: Part, lab: Lab) -> Found:
    """What memory cannot decide: always missing, saying which evidence would decide it."""
    raise Missing(part.args["needs"])


@dataclass(frozen=True)
class Kind:
    run: Callable[[Part, Lab], Found]
    reads: Mapping[str, tuple[type, ...]]
    needs: tuple[str, ...] = ()


CHECKS: dict[str, Kind] = {
    "quantity": Kind(
        quantity,
        {"quantity": (str,), "moment": (str,), "component": (str,), "row": (str,), "times": (int, float), "of": (list,), "per": (list,)},
    ),
    "fits": Kind(fits, {}),
    "setup_field": Kind(setup_field, {"field": (str,)}, ("field",)),
    "row_dtype": Kind(row_dtype, {"row": (str,), "moment": (str,)}, ("row",)),
    "library_fact": Kind(library_fact, {"fact": (str,)}, ("fact",)),
    "arithmetic": Kind(arithmetic, {"expression": (str,)}, ("expression",)),
    "time_ratio": Kind(time_ratio, {"slow": (dict,), "fast": (dict,)}, ("slow", "fast")),
    "measured": Kind(measured, {"metric": (str,), "match": (dict,)}, ("metric", "match")),
    "published": Kind(published, {"figure": (str,)}, ("figure",)),
    "quality": Kind(quality, {"needs": (str,)}, ("needs",)),
}
