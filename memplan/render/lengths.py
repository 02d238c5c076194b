"""The lengths of a dataset's examples on a screen: which batch is the longest and when it is met, what the
GPU holds instead, what different lengths leave reserved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memplan.render.text import short


def lengths_lines(
    found: Mapping[str, Any] | None, allocator: str, verdict: str | None = None
) -> Iterator[tuple[str, str]]:
    """One or two labeled lines of a document's `lengths`: batches, and, unless the longest is already too
    much on the GPU that is named, what is reserved.
    """
    if found is None:
        return
    yield "Lengths", batches(found)
    if "reserved" in found and verdict in ("fits", None):
        yield "Reserves", reserved(found, allocator)


def batches(found: Mapping[str, Any]) -> str:
    """The longest batch, and how often it is met; where it does not fit, the longest that does."""
    worst = found["worst"]
    if found["batches"] == "packed":
        each = found["examples_per_row"]
        return f"packed rows of {worst['length']:,} tokens, {each:,.1f} examples in each: every step is alike"
    up_to = found.get("fits_up_to")
    padding = f"padding {found['padding']:.0%}" if "padding" in found else "no padding"
    if up_to is not None:
        longest = "no length fits" if up_to["length"] is None else f"fits up to {up_to['length']:,} tokens"
        every = up_to["longer_once_in_steps"]
        longer = f": {once(every)} longer" if up_to["length"] is not None and every is not None else ""
        return f"{longest}{longer} (to {worst['length']:,}); {padding}"
    first = worst["first_step"]
    met = once(worst["once_in_steps"])
    if found["batches"] == "padding_free":
        return f"at most {worst['length']:,} tokens a row; {padding}"
    near = "" if abs(first / worst["once_in_steps"] - 1) < 0.02 else f", first near {first:,.0f}"
    when = "the first step" if first < 1.5 else f"{met}{near}"
    half = next(each["length"] for each in found["steps"] if each["percentile"] == 50)
    return f"to {worst['length']:,} tokens ({when}); half to {half:,}; {padding}"


def once(steps: float) -> str:
    """How often something happens that happens once in so many steps."""
    if steps < 1.05:
        return "every step"
    return f"1 step in {steps:,.0f}" if steps >= 6.5 else f"{10 / steps:.0f} steps in 10"


def reserved(found: Mapping[str, Any], allocator: str) -> str:
    """What a run of different lengths leaves reserved: on the GPU named, or where nothing bounds it."""
    sizes = found["reserved"]
    here = sizes[allocator]
    text = f"{_range(here)} GiB in {sizes['steps']} steps if unbounded"
    if allocator == "native":
        text += f", {_range(sizes['expandable'])} expandable"
    bounded = found.get("on_gpu")
    if bounded and bounded["survives"]:
        text = f"all of the GPU: its cache given back {bounded['releases']} times in {bounded['steps']} steps"
    return text


def _range(sizes: Mapping[str, int]) -> str:
    low, high = short(sizes["low_bytes"]), short(sizes["high_bytes"])
    return low if low == high else f"{low}–{high}"
