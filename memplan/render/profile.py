"""What `profile` prints: the outcome, predicted against measured by moment, components at the peak, speed,
and what did not match.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memplan.planner.tables.units import gib
from memplan.profiler.record import MEASURED_COMPONENTS, Measurement
from memplan.render.text import label

SHOWN_UNMATCHED = 5


def profile_screen(measurement: Measurement, saved: Path | None = None) -> list[RenderableType]:
    """Everything that `memplan profile` prints, top to bottom."""
    parts: list[RenderableType] = [outcome_line(measurement), subject_line(measurement), Text()]
    if measurement.moments:
        parts += [moment_table(measurement), Text()]
    components = component_lines(measurement)
    if components:
        parts += [*components, Text()]
    parts += [Text(line) for line in [*speed_lines(measurement), *alignment_lines(measurement)]]
    parts += [Text(f"note: {warning}", style="dim") for warning in measurement.warnings]
    if saved is not None:
        parts.append(Text(f"recorded in {saved}"))
    return parts


def outcome_line(m: Measurement) -> Text:
    """'measured 9.21 GiB allocated, 9.80 GiB reserved (peak in backward)', or what stopped the run."""
    if m.outcome == "ok" and m.peak is not None:
        reserved = f", {gib(m.peak.reserved_bytes)} reserved" if m.peak.reserved_bytes is not None else ""
        device = f", {gib(m.peak.device_bytes)} on the device" if m.peak.device_bytes is not None else ""
        how = "dry run:" if m.dry else "measured"
        return Text(
            f"{how} {gib(m.peak.allocated_bytes)} allocated{reserved}{device}; peak: {label(m.peak.moment)}",
            style="bold",
        )
    failure = m.failure
    if m.outcome == "oom" and failure is not None:
        asked = f": asked for {gib(failure.requested_bytes)}" if failure.requested_bytes is not None else ""
        free = f", {gib(failure.free_bytes)} free" if failure.free_bytes is not None else ""
        held = f", {gib(failure.allocated_bytes)} allocated" if failure.allocated_bytes is not None else ""
        return Text(
            f"{'dry run: ' if m.dry else ''}out of memory in {label(failure.moment or 'load')}"
            f"{asked}{free}{held}",
            style="bold red",
        )
    return Text(f"failed: {failure.message if failure else 'no reason recorded'}", style="bold red")


def subject_line(m: Measurement) -> Text:
    """What ran, on which device, with which library versions."""
    setup, versions = m.setup, m.environment.get("versions") or {}
    where = m.environment.get("gpu") or "CPU"
    libraries = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "peft") if versions.get(name)
    )
    run = f"{m.model.get('name')} {setup.method}, batch {setup.micro_batch} x {setup.sequence_length}"
    return Text(f"{run}, {where}, {libraries}", style="dim")


def moment_table(m: Measurement) -> Table:
    """Allocated bytes by moment: what was predicted before the run, what was measured, the error."""
    predicted = {
        moment["name"]: moment["allocated_bytes"] for moment in (m.prediction or {}).get("moments", ())
    }
    table = Table(box=None, pad_edge=False)
    table.add_column("moment")
    for heading in ("predicted", "dry run" if m.dry else "measured", "error", "reserved"):
        table.add_column(heading, justify="right")
    for moment in m.moments:
        before = predicted.get(moment.name)
        error = "" if before is None else _error(before, moment.allocated_bytes)
        reserved = "" if moment.reserved_bytes is None else gib(moment.reserved_bytes)
        table.add_row(
            label(moment.name),
            "??" if before is None else gib(before),
            gib(moment.allocated_bytes),
            error,
            reserved,
        )
    return table


def _error(predicted: int, measured: int) -> str:
    if predicted == measured:
        return "exact"
    return f"{(predicted - measured) / measured:+.2%}" if measured else "??"


def component_lines(m: Measurement) -> list[Text]:
    """The components at the peak's moment, those that are not zero."""
    if m.peak is None:
        return []
    moment = next((moment for moment in m.moments if moment.name == m.peak.moment), None)
    if moment is None or moment.components is None:
        return []
    parts = [
        f"{label(name)} {gib(moment.components[name])}"
        for name in MEASURED_COMPONENTS
        if moment.components.get(name)
    ]
    return [Text(f"at that peak: {', '.join(parts)}")]


def speed_lines(m: Measurement) -> list[str]:
    """The mean step time, tokens and FLOP per second, and allocation retries; empty where no step was
    timed.
    """
    if not m.step_seconds:
        return []
    mean = sum(m.step_seconds) / len(m.step_seconds)
    tokens = f", {m.tokens_per_second:,.0f} tokens/s" if m.tokens_per_second else ""
    flops = f", {m.flops_per_second / 1e12:,.2f} TFLOP/s achieved" if m.flops_per_second else ""
    retries = f", {m.retries} allocation retries" if m.retries else ""
    return [f"{mean:.3f} s a step (mean of {len(m.step_seconds)}){tokens}{flops}{retries}"]


def alignment_lines(m: Measurement) -> list[str]:
    """How much of the allocator's history was predicted event by event, and the largest of what was not."""
    if not m.alignment:
        return []
    events = m.alignment["events"]
    happened = (
        f"{events['matched']:,} of {events['predicted']:,} predicted allocations and frees of one step "
        "happened"
    )
    cut = ", cut for time" if m.alignment.get("cut") else ""
    lines = [f"{happened}; the allocator saw {events['measured']:,}{cut}"]
    allocations: list[Mapping[str, Any]] = [row for row in m.alignment["unmatched"] if row["kind"] == "alloc"]
    for row in allocations[:SHOWN_UNMATCHED]:
        count = f"{row['count']} x " if row["count"] > 1 else ""
        lines.append(
            f"  only {row['only']}, {label(row['moment'])}: {count}{gib(row['bytes'])}  "
            f"{row['where'] or 'unknown op'}"
        )
    return lines


def audit_lines(document: Mapping[str, Any]) -> list[RenderableType]:
    """The op audit: one row per op, what its kernels took beyond what meta tensors show."""
    table = Table(box=None, pad_edge=False)
    for heading in ("op", "shapes"):
        table.add_column(heading, overflow="fold")
    for heading in ("calls", "hidden", "known", "rest"):
        table.add_column(heading, justify="right")
    shown = [row for row in document["ops"] if row["hidden_bytes"] or row["known_bytes"]]
    for row in shown:
        rest = row["hidden_bytes"] - row["known_bytes"]
        sizes = (gib(row["hidden_bytes"]), gib(row["known_bytes"]), gib(rest) if rest else "-")
        table.add_row(row["op"], row["shapes"], str(row["calls"]), *sizes)
    counts = (
        f"{len(document['ops'])} distinct ops replayed, {len(shown)} with workspaces that the "
        f"trace missed, {len(document['skipped'])} not replayed"
    )
    skipped = [
        Text(f"not replayed: {row['op']} {row['shapes']}: {row['reason']}", style="dim")
        for row in document["skipped"]
    ]
    return [Text(counts, style="bold"), table, *skipped]
