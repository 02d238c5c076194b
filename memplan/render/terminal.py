"""The first screen of `plan`: verdict, bar, components by moment, the peak's reason, what was assumed, how
sure, what would help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memplan.planner.answers.fit.suggest import Suggestion
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import COMPONENTS, Breakdown, Prediction
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import GIB, gib
from memplan.render.bar import key_of, ruler, stacked_bar

WORDS = {
    "fits": ("fits", "bold green"),
    "tight": ("tight", "bold yellow"),
    "no": ("does not fit", "bold red"),
}
LABELS = {
    "optimizer_states": "optimizer states",
    "load_peak": "load peak",
    "optimizer_step": "optimizer step",
}
SHOWN_MOMENTS = 5


def label(name: str) -> str:
    """A component's or a moment's name as a person reads it."""
    return LABELS.get(name, name.replace("_", " "))


def plan_screen(
    prediction: Prediction,
    gpu: Gpu | None,
    suggestions: Sequence[Suggestion] = (),
    width: int = 80,
    ascii_only: bool = False,
) -> list[RenderableType]:
    """Everything that `memplan MODEL` prints, top to bottom; `gpu` None: the bar is scaled to the smallest
    common GPU that fits.
    """
    parts: list[RenderableType] = [verdict_line(prediction, gpu), subject_line(prediction), Text()]
    parts += [*bar_lines(prediction, gpu, width, ascii_only), Text()]
    parts += [component_table(prediction, gpu, ascii_only, width), Text()]
    parts += sentences(prediction)
    if suggestions:
        parts += [Text(), *suggestion_lines(suggestions, gpu)]
    return parts


def verdict_line(prediction: Prediction, gpu: Gpu | None) -> Text:
    """'fits rtx-4090: 9.21 GiB of 23.50 GiB usable, 14.29 GiB free' or, without a GPU, what is needed and
    which common GPUs have it.
    """
    if gpu is None:
        where = "GPU memory" if prediction.setup.device == "cuda" else "host memory on a CPU"
        line = Text(f"needs {gib(prediction.peak.device_bytes)} of {where}", style="bold")
        if prediction.gpus and all(verdict.verdict == "no" for verdict in prediction.gpus):
            largest = max(prediction.gpus, key=lambda verdict: verdict.usable_bytes)
            return line.append(
                f"\ndoes not fit any common GPU: the largest, {largest.name}, has "
                f"{gib(largest.usable_bytes)} usable",
                style="not bold",
            )
        for word, (text, style) in WORDS.items():
            names = [verdict.name for verdict in prediction.gpus if verdict.verdict == word]
            if names:
                line.append("\n").append(text, style=style).append(": " + ", ".join(names), style="not bold")
        return line
    verdict = prediction.gpus[0]
    text, style = WORDS[verdict.verdict]
    needed = verdict.usable_bytes - verdict.headroom_bytes
    room = (
        f"{gib(verdict.headroom_bytes)} free"
        if verdict.headroom_bytes >= 0
        else f"{gib(-verdict.headroom_bytes)} short"
    )
    return Text(text, style=style).append(
        f" {verdict.name}: {gib(needed)} needed of {gib(verdict.usable_bytes)} usable, {room}",
        style="not bold",
    )


def subject_line(prediction: Prediction) -> Text:
    """What was predicted: the model, its parameters, how many are trained, the batch."""
    setup, model = prediction.setup, prediction.model
    trained = f", {count(prediction.trainable_parameters)} trained" if prediction.trainable_parameters else ""
    batch = f"micro-batch {setup.micro_batch:,} x {setup.sequence_length:,} tokens"
    shares = f"; one rank of {setup.gpus} ({setup.parallel})" if setup.gpus > 1 else ""
    return Text(
        f"{model.name}, {setup.method}: {count(model.parameters)} parameters{trained}; {batch}{shares}"
    )


def count(parameters: int) -> str:
    """A count of parameters as people say it: 6.74 B, 40.0 M, 512."""
    for size, unit, digits in ((10**9, "B", 2), (10**6, "M", 1), (10**3, "K", 1)):
        if parameters >= size:
            return f"{parameters / size:,.{digits}f} {unit}"
    return str(parameters)


def bar_lines(prediction: Prediction, gpu: Gpu | None, width: int, ascii_only: bool) -> list[Text]:
    """The stacked device peak against the GPU; without one, against the smallest common GPU that fits, else
    against itself.
    """
    segments = device_segments(prediction, gpu)
    needed = sum(size for _, size in segments)
    verdict = (
        prediction.gpus[0]
        if gpu is not None
        else next((v for v in prediction.gpus if v.verdict == "fits"), None)
    )
    usable = verdict.usable_bytes if verdict else None
    whole = max(needed, usable or 0, nominal_bytes(gpu))
    name = verdict.name if verdict else "this run"
    mark = f"{gib(usable)} usable" if usable else ""
    end = name if usable and needed <= usable else f"{name}: {gib(needed)} needed"
    bar = stacked_bar(segments, whole, usable if usable and usable < whole else None, width, ascii_only)
    return [bar, ruler(whole, usable, width, ("0", mark, end))]


def nominal_bytes(gpu: Gpu | None) -> int:
    """The vendor's size read as GiB, which is what a GPU is called by; 0 for a budget."""
    return round((gpu.marketing_gb or 0) * GIB) if gpu else 0


def device_segments(prediction: Prediction, gpu: Gpu | None) -> list[tuple[str, int]]:
    """The device peak in order: components at the peak moment, what is reserved beyond them, the CUDA
    context.
    """
    peak = prediction.peak
    context = gpu.context_bytes if gpu else peak.context_bytes
    components = prediction.moment(peak.moment).components
    return [
        *((name, components[name]) for name in COMPONENTS),
        ("fragmentation", max(0, peak.reserved_bytes - peak.allocated_bytes)),
        ("cuda_context", context),
    ]


SPACING = ((2, 2, True), (1, 2, True), (1, 1, True), (2, 2, False), (1, 1, False), (0, 0, False))
"""(blanks between columns, decimals, whether each moment has its column), the roomiest first."""


def component_table(prediction: Prediction, gpu: Gpu | None, ascii_only: bool, width: int = 80) -> Table:
    """Components by moment in `width` columns: what is narrow gives up blanks, a decimal, then the moments;
    no number is ever cut.
    """
    console = Console(width=1000)
    for spacing in SPACING:
        table = _component_table(prediction, gpu, ascii_only, *spacing)
        if console.measure(table).maximum <= width:
            break
    return table


def _component_table(
    prediction: Prediction, gpu: Gpu | None, ascii_only: bool, blanks: int, digits: int, each: bool
) -> Table:
    """Rows: components, allocated, fragmentation, context, device. Columns: GiB and share at the peak, then
    each moment's own peak.
    """
    moments = shown_moments(prediction) if each else []
    peak = prediction.moment(prediction.peak.moment)
    segments = dict(device_segments(prediction, gpu))
    device = sum(segments.values())
    table = Table(box=None, padding=(0, blanks, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("GiB", no_wrap=True)
    table.add_column("at the\npeak", justify="right", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    for moment in moments:
        table.add_column(
            label(moment.moment).replace(" ", "\n"),
            justify="right",
            no_wrap=True,
            style="bold" if moment.moment == peak.moment else "",
        )

    def row(name: str, key: str | None, size: int, per_moment: Sequence[int | None], style: str = "") -> None:
        legend = key_of(key, ascii_only) if key else Text()
        cells = [number(value, digits) for value in per_moment]
        table.add_row(legend, name, number(size, digits), f"{100 * size / device:.1f}", *cells, style=style)

    for name in COMPONENTS:
        row(label(name), name, segments[name], [moment.components[name] for moment in moments])
    row("allocated", None, peak.allocated_bytes, [moment.allocated_bytes for moment in moments], "bold")
    nothing: list[int | None] = [None] * len(moments)
    if segments["fragmentation"]:
        row("fragmentation", "fragmentation", segments["fragmentation"], nothing)
    row("CUDA context", "cuda_context", segments["cuda_context"], nothing)
    row("device", None, device, nothing, "bold")
    return table


def shown_moments(prediction: Prediction) -> list[Breakdown]:
    """At most five moments in their order, the peak's always among them; the document has all."""
    moments = list(prediction.moments)
    if len(moments) <= SHOWN_MOMENTS:
        return moments
    smallest = sorted(
        (m for m in moments if m.moment != prediction.peak.moment), key=lambda m: m.allocated_bytes
    )
    dropped = {m.moment for m in smallest[: len(moments) - SHOWN_MOMENTS]}
    return [m for m in moments if m.moment not in dropped]


def number(nbytes: int | None, digits: int = 2) -> str:
    """GiB with two decimals and no unit, for a column; what is not zero never reads as zero."""
    if nbytes is None:
        return ""
    if nbytes == 0:
        return "-"
    least = 10.0**-digits
    return f"{nbytes / GIB:,.{digits}f}" if nbytes >= least / 2 * GIB else f"<{least:.{digits}f}"


def sentences(prediction: Prediction) -> list[RenderableType]:
    """Where the peak is and why, what was assumed, accuracy, and what else to know: one labeled paragraph
    each.
    """
    lines = [
        ("Peak", why_there(prediction)),
        ("Defaults", f"recipe {prediction.setup.recipe}: {defaults(prediction.setup)}"),
    ]
    if prediction.assumptions:
        lines.append(("Assumed", "; ".join(prediction.assumptions) + "."))
    if prediction.host_bytes:
        lines.append(("Host", f"{gib(prediction.host_bytes)} of host memory as well"))
    lines.append(("Accuracy", accuracy(prediction)))
    if "bands" in prediction.extra:
        lines.append(("Loading", loading(prediction.extra["bands"])))
    lines += [("Warning", text) for text in prediction.warnings]
    return [paragraph(head, text) for head, text in lines]


def loading(bands: Mapping[str, Any]) -> str:
    """What the order of loading leaves open, where the trace replayed other orders."""
    held, reserved = (
        f"{gib(bands[name]['low_bytes'])} to {gib(bands[name]['high_bytes'])}"
        for name in ("load", "reserved")
    )
    return f"{bands['why']}: {held} after loading, {reserved} reserved in the step."


def paragraph(head: str, text: str) -> RenderableType:
    """A label in the first ten columns, the text beside it, wrapped under itself."""
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
    rows = [
        row
        for row in prediction.peak_rows
        if row.component not in ("weights", "optimizer_states") and row.charged
    ][:3]
    largest = "; ".join(f"{row.name} {gib(row.charged)} ({row.why})" for row in rows)
    where = f"in {label(peak.moment)}"
    if peak.moment == "optimizer_step":
        where = "inside the optimizer's step"
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
    if known.median_error is None or known.worst_error is None:
        return f"unknown: {known.evidence}."
    nearest = f"; nearest run: {known.nearest_run}" if known.nearest_run else ""
    errors = f"{100 * known.median_error:.2f} % (median), {100 * known.worst_error:.2f} % (worst)"
    return f"{prediction.engine} engine, peak allocated within {errors}: {known.evidence}{nearest}."


def suggestion_lines(suggestions: Sequence[Suggestion], gpu: Gpu | None) -> list[RenderableType]:
    """What single changes would save, and whether it would fit then."""
    lines: list[RenderableType] = [
        Text(
            "One change would save" if len(suggestions) == 1 else "Each of these changes alone would save",
            style="bold",
        )
    ]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    table.add_column()
    table.add_column(overflow="fold")
    for suggestion in suggestions:
        outcome = f"-> {gib(suggestion.device_bytes)}"
        if gpu is not None:
            outcome += ", fits" if suggestion.device_bytes <= gpu.usable_bytes else ", does not fit"
        table.add_row(gib(suggestion.saved_bytes), outcome, suggestion.text)
    return [*lines, Padding(table, (0, 0, 0, 2))]
