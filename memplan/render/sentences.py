"""What is said beside a prediction's numbers: why the peak is there, what was assumed, how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Prediction, Row
from memplan.planner.tables.units import gib
from memplan.render.text import label, short_gib


def assumptions(prediction: Prediction) -> list[RenderableType]:
    """What --assumptions adds: what recipe and method fixed, what was assumed, accuracy, and every warning;
    one labeled paragraph each.
    """
    lines = [("Defaults", f"recipe {prediction.setup.recipe}: {defaults(prediction.setup)}")]
    if prediction.assumptions:
        lines.append(("Assumed", "; ".join(prediction.assumptions) + "."))
    lines.append(("Accuracy", accuracy(prediction)))
    if "bands" in prediction.extra:
        lines.append(("Loading", loading(prediction.extra["bands"])))
    lines += [("Warning", text) for text in prediction.warnings]
    return [paragraph(head, text) for head, text in lines]


def peak_in_short(prediction: Prediction, room: int) -> str:
    """The peak's moment and the largest tensors that come and go in it, those that `room` columns hold."""
    text = PLACES.get(prediction.peak.moment, label(prediction.peak.moment))
    rows = _passing(prediction)
    for number, row in enumerate(rows):
        name = row.name.removeprefix("model.layers.*.")
        more = f"{', ' if number else ', largest tensors: '}{name} {short_gib(row.charged)}"
        if number and len(text + more) > room:
            break
        text += more
    return text


PLACES = {
    "load_peak": "loading the model",
    "load": "after loading",
    "forward": "forward pass",
    "backward": "backward pass",
    "optimizer_step": "inside the optimizer's step",
    "evaluate": "the evaluation step",
    "save": "saving the model",
    "merge": "merging the adapter",
}
"""Where a peak is, in words."""


def checked(prediction: Prediction) -> str:
    """The evidence for a prediction like this one in a line; --assumptions has all of it."""
    from memplan.validate.published_evidence import checked as of_published

    return of_published(prediction.accuracy)


def _passing(prediction: Prediction) -> list[Row]:
    """The three largest rows at the peak that come and go within a step: weights and states always stay."""
    rows = prediction.peak_rows
    return [r for r in rows if r.component not in ("weights", "optimizer_states") and r.charged][:3]


def loading(bands: Mapping[str, Any]) -> str:
    """What the order of loading leaves open, where the trace replayed other orders."""
    held, reserved = (
        f"{gib(bands[name]['low_bytes'])} to {gib(bands[name]['high_bytes'])}"
        for name in ("load", "reserved")
    )
    return f"{bands['why']}: {held} after loading, {reserved} reserved in the step."


def paragraph(head: str, text: str) -> RenderableType:
    """A label in the first ten columns, the text beside it, wrapped under itself."""
    from rich.table import Table  # a twentieth of start-up, and the first screen has no table

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(width=9, style="bold")
    table.add_column(overflow="fold")
    table.add_row(head, text)
    return table


def why_there(prediction: Prediction) -> str:
    """The peak's moment and the largest rows that come and go within a step, with their reasons: weights and
    states are always there.
    """
    peak = prediction.peak
    rows = _passing(prediction)
    largest = "; ".join(f"{row.name} {gib(row.charged)} ({row.why})" for row in rows)
    where = PLACES.get(peak.moment, label(peak.moment))
    return f"{where}, {gib(peak.allocated_bytes)} allocated." + (
        f" Largest temporary tensors: {largest}." if largest else ""
    )


def defaults(setup: Setup) -> str:
    """What recipe and method fixed: every choice that nobody made, in the words of the options."""
    chosen = {name for name, origin in setup.origins.items() if origin in ("user", "import")}
    return ", ".join(text for names, text in phrases(setup) if not chosen.issuperset(names)) + "."


def phrases(setup: Setup) -> list[tuple[tuple[str, ...], str]]:
    """(fields, words) for the choices that move memory most, where they apply."""
    base: list[tuple[tuple[str, ...], str]] = []
    if setup.quant_type == "none":
        base.append((("weight_dtype",), f"{setup.weight_dtype} weights"))
    else:
        double = " with double quantization" if setup.double_quant else ""
        base.append(
            (
                ("quant_type", "double_quant", "weight_dtype"),
                f"{setup.quant_type} weights{double}, {setup.weight_dtype} elsewhere",
            )
        )
        base.append(
            (
                ("kbit_prepare",),
                "fp32 upcast of unquantized parameters" if setup.kbit_prepare else "no fp32 upcast",
            )
        )
    if setup.method == "inference":
        return base
    base.append((("autocast",), "no autocast" if setup.autocast == "none" else f"{setup.autocast} autocast"))
    from memplan.planner.tables.methods import METHODS

    if "rank" in METHODS[setup.method].reads and setup.adapter is None:
        ranks = f"rank {setup.rank}"
        fields: tuple[str, ...] = ("rank", "targets", "adapter_dtype")
        if setup.method == "adalora":
            ranks = f"rank {setup.init_rank} pruned to {setup.target_rank}"
            fields = ("init_rank", "target_rank", *fields[1:])
        base.append((fields, f"{ranks} on {'+'.join(setup.targets)}, {setup.adapter_dtype} adapters"))
    checkpointing = (
        "no gradient checkpointing"
        if setup.checkpointing == "none"
        else f"{setup.checkpointing} gradient checkpointing"
    )
    base.append((("checkpointing",), checkpointing))
    base += [
        (("attention",), f"{setup.attention} attention"),
        (("loss",), f"{setup.loss} loss"),
        (("optimizer",), setup.optimizer),
    ]
    base.append((("padded",), "with padding mask" if setup.padded else "no padding"))
    return base


def accuracy(prediction: Prediction) -> str:
    """How far this engine was from recorded runs, and what that rests on."""
    known = prediction.accuracy
    if known.published is not None and (known.margin_share is not None or known.median_error is None):
        nearest = f"; nearest run: {known.nearest_run}" if known.nearest_run else ""
        return f"{prediction.engine} engine: {known.evidence}{nearest}."
    if known.median_error is None or known.worst_error is None:
        return f"unknown: {known.evidence}."
    nearest = f"; nearest run: {known.nearest_run}" if known.nearest_run else ""
    errors = f"{100 * known.median_error:.2f} % (median), {100 * known.worst_error:.2f} % (worst)"
    return f"{prediction.engine} engine, peak allocated within {errors}: {known.evidence}{nearest}."
