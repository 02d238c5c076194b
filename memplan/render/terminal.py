"""The first screen of `plan`: verdict, bar, components by moment, sentences, and what would help."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memplan.planner.answers.fit.suggest import Suggestion
from memplan.planner.prediction import GpuVerdict, Prediction
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import gib
from memplan.render.components import bar_lines, component_table
from memplan.render.sentences import sentences
from memplan.render.text import count

WORDS = {
    "fits": ("fits", "bold green"),
    "tight": ("tight", "bold yellow"),
    "no": ("does not fit", "bold red"),
}


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
        able = [verdict for verdict in prediction.gpus if verdict.verdict is not None]
        if able and all(v.verdict == "no" for v in able) and not prediction.not_modelled:
            largest = max(able, key=lambda verdict: verdict.usable_bytes)
            line.append(
                f"\ndoes not fit any common GPU: the largest, {largest.name}, has "
                f"{gib(largest.usable_bytes)} usable",
                style="not bold",
            )
        else:
            for word, (text, style) in WORDS.items():
                names = [verdict.name for verdict in able if verdict.verdict == word]
                if names:
                    line.append("\n").append(text, style=style).append(
                        ": " + ", ".join(names), style="not bold"
                    )
        if prediction.not_modelled:
            line = Text("needs at least").append(line[len("needs") :])
            line.append("\n").append("no verdict", style="bold yellow").append(
                f": not counted: {'; '.join(prediction.not_modelled)}", style="not bold"
            )
        for which, why in unable(prediction.gpus):
            line.append("\n").append("cannot run", style="bold red").append(
                f": {which} ({why})", style="not bold"
            )
        return line
    verdict = prediction.gpus[0]
    if verdict.verdict is None:
        return Text("no verdict", style="bold yellow").append(
            f" {verdict.name}: at least {gib(verdict.needed_bytes)} needed of {gib(verdict.usable_bytes)} "
            f"usable; {verdict.why}",
            style="not bold",
        )
    text, style = WORDS[verdict.verdict]
    needed = verdict.needed_bytes
    spare = verdict.usable_bytes - needed
    room = f"{gib(spare)} free" if spare >= 0 else f"{gib(-spare)} short"
    return Text(text, style=style).append(
        f" {verdict.name}: {gib(needed)} needed of {gib(verdict.usable_bytes)} usable, {room}",
        style="not bold",
    )


def unable(gpus: Sequence[GpuVerdict]) -> list[tuple[str, str]]:
    """The GPUs that cannot run the setup, by reason: (names, why)."""
    reasons: dict[str, list[str]] = {}
    for verdict in gpus:
        if verdict.headroom_bytes is None and verdict.why is not None:
            reasons.setdefault(verdict.why, []).append(verdict.name)
    return [(", ".join(names), why) for why, names in reasons.items()]


def subject_line(prediction: Prediction) -> Text:
    """What was predicted: the model, its parameters, how many are trained, the batch."""
    setup, model = prediction.setup, prediction.model
    trained = f", {count(prediction.trainable_parameters)} trained" if prediction.trainable_parameters else ""
    batch = f"micro-batch {setup.micro_batch:,} x {setup.sequence_length:,} tokens"
    shares = f"; one rank of {setup.gpus} ({setup.parallel})" if setup.gpus > 1 else ""
    return Text(
        f"{model.name}, {setup.method}: {count(model.parameters)} parameters{trained}; {batch}{shares}"
    )


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
