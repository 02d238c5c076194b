"""The first screen of `plan`: verdict, range and headroom; where the bytes are; what to do. The rest is
behind --explain (explain.py) and --assumptions (sentences.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.console import RenderableType
from rich.text import Text

from memplan.planner.answers.fit.suggest import Suggestion
from memplan.planner.answers.parts import deciding, headline
from memplan.planner.answers.verdict import least_bytes, what_it_takes
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.usual_pictures import is_assumed
from memplan.planner.prediction import GpuVerdict, Prediction
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.parallel import named
from memplan.planner.tables.units import GIB
from memplan.render.bar import STYLES
from memplan.render.components import device_segments
from memplan.render.sentences import checked, paragraph, peak_in_short
from memplan.render.text import label, number, short, short_gib
from memplan.render.words import GLYPHS, ascii_text, fold, names_of, words_of

if TYPE_CHECKING:
    from memplan.planner.answers.fit.limits import Limits

BAR = 36  # cells of the longest component
LEFT = 34  # columns before the bars
SHOWN_WARNINGS = 2


class Advice(NamedTuple):
    """What the last lines are made of: single changes that save memory, and the limits of a named GPU."""

    suggestions: tuple[Suggestion, ...] = ()
    limits: Limits | None = None


NO_ADVICE = Advice()


def plan_screen(
    prediction: Prediction,
    gpu: Gpu | None,
    advice: Advice = NO_ADVICE,
    width: int = 80,
    ascii_only: bool = False,
) -> list[RenderableType]:
    """Everything that `memplan MODEL` prints without a flag, top to bottom."""
    lines = [*fold(list(verdict_parts(prediction, gpu)), width), Text(subject(prediction)), Text()]
    lines += [*component_lines(prediction, gpu, width), Text()]
    found = list(advice_lines(prediction, gpu, advice, width))
    if ascii_only:
        lines = [ascii_text(line) for line in lines]
        found = [(head, ascii_text(Text(text)).plain) for head, text in found]
    hints = ascii_text(Text(next_steps(gpu))) if ascii_only else Text(next_steps(gpu))
    hints.stylize("dim")
    return [*lines, *(paragraph(head, text) for head, text in found), Text(), hints]


def verdict_parts(prediction: Prediction, gpu: Gpu | None) -> Iterator[Text]:
    """The first line in parts: with a GPU its verdict, range and headroom; without one what is needed and the
    common GPUs by verdict.
    """
    if gpu is not None:
        yield from _on_one(prediction, prediction.gpus[0])
        return
    where = "" if prediction.setup.device == "cuda" else " of host memory on a CPU"
    device = prediction.peak.device_bytes
    if prediction.not_modelled:
        least = min(device, least_bytes(prediction))
        yield Text(f"{GLYPHS[None]} AT LEAST {short_gib(least)}{where}", style="bold yellow")
        yield Text(f"not counted: {'; '.join(prediction.not_modelled)}")
    else:
        most = high_bytes(prediction)
        up_to = f", at most {short(most)}" if short(most) != short(device) else ""
        yield Text(f"needs {short_gib(device)}{up_to}{where}", style="bold")
    yield from names_of(prediction.gpus)


def high_bytes(prediction: Prediction) -> int:
    """What a GPU with a context of this size must have so that the run surely fits."""
    highs = [v.high_bytes - v.needed_bytes for v in prediction.gpus if v.high_bytes is not None]
    return prediction.peak.device_bytes + max(highs, default=0)


def _on_one(prediction: Prediction, verdict: GpuVerdict) -> Iterator[Text]:
    usable = short_gib(verdict.usable_bytes)
    glyph, word, style = words_of(verdict.verdict)
    least, most = span(prediction, verdict)
    if verdict.verdict is None:
        yield Text(f"{glyph} {word} {short_gib(least)} of {usable} {verdict.name}", style=style)
        yield Text(str(verdict.why))
        return
    yield Text(f"{glyph} {word} {verdict.name}", style=style)
    figures = short(least) if short(least) == short(most) else f"{short(least)}–{short(most)}"
    at_least = "at least " if prediction.not_modelled else ""
    yield Text(f"needs {at_least}{figures} GiB of {usable}")
    if verdict.verdict == "fits":
        yield Text(f"{short_gib(verdict.usable_bytes - most)} or more to spare")
    elif verdict.verdict == "no":
        yield Text(f"{short_gib(max(1, least - verdict.usable_bytes))} short")
        if decides := headline(verdict.parts):
            yield Text(decides)


def span(prediction: Prediction, verdict: GpuVerdict) -> tuple[int, int]:
    """(low, high) of a verdict in bytes. The replays that find `low` take a second: where the tensors alone
    are too many, what is predicted stands for both.
    """
    needed = verdict.needed_bytes
    tensors = prediction.peak.allocated_bytes
    if verdict.verdict == "no" and tensors > verdict.usable_bytes:
        return needed, needed
    low = verdict.low_bytes
    return min(needed, needed if low is None else low), max(needed, verdict.high_bytes or needed)


def subject(prediction: Prediction) -> str:
    """What was predicted: model, method, task, batch, checkpointing, and whose share of several GPUs."""
    setup = prediction.setup
    varied = prediction.extra.get("lengths", {}).get("batches", "packed") != "packed"
    parts = [
        prediction.model.name,
        setup.method,
        *([setup.task] if setup.task != "sft" else []),
        f"batch {setup.micro_batch:,} × {'up to ' * varied}{setup.sequence_length:,} tokens",
    ]
    if is_assumed(setup):
        parts.append(f"a picture of {setup.images[0].partition('@')[2]} assumed")
    if setup.method != "inference":
        parts.append(f"gradient checkpointing {'off' if setup.checkpointing == 'none' else 'on'}")
    if setup.gpus > 1:
        parts.append(f"one rank of {setup.gpus} ({named(setup.parallel, setup.fsdp_version)})")
    return " · ".join(parts)


def component_lines(prediction: Prediction, gpu: Gpu | None, width: int) -> Iterator[Text]:
    """One line a component of the device peak, with a bar to scale."""
    segments = device_segments(prediction, gpu)
    largest = max(1, *(size for _, size in segments))
    room, digits = min(BAR, width - LEFT), 1 if largest >= GIB else 2
    for name, size in segments:
        glyph = "░" if name == "fragmentation" else "█"
        cells = round(size * room / largest)
        text = f"{number(size, digits):>6} GiB" if size else "     -    "
        line = Text(f"  {_component(name, prediction.setup):<20} {text} ")
        yield line.append(glyph * cells, style=STYLES[name].color)


def _component(name: str, setup: Setup) -> str:
    if name == "cuda_context":
        return "CUDA context"
    bits = {"nf4": " (4-bit)", "fp4": " (4-bit)", "int8": " (8-bit)"}.get(setup.quant_type, "")
    return label(name) + (bits if name == "weights" else "")


def advice_lines(
    prediction: Prediction, gpu: Gpu | None, advice: Advice, width: int
) -> Iterator[tuple[str, str]]:
    """Where the peak is, what the GPU could hold, what saves memory, how sure it is, what to beware of."""
    room = width - 10
    yield "Peak", peak_in_short(prediction, room)
    verdict = prediction.gpus[0] if gpu is not None else None
    if verdict is not None and verdict.verdict in ("tight", "no") and (which := deciding(verdict.parts)):
        yield "Decides", which
    if gpu is not None and verdict is not None and verdict.verdict == "tight":
        yield "To fit", what_it_takes(prediction, gpu)
    word = verdict.verdict if verdict is not None else None
    lengths: list[tuple[str, str]] = []
    if "lengths" in prediction.extra:
        from memplan.render.lengths import lengths_lines

        lengths = list(lengths_lines(prediction.extra["lengths"], prediction.setup.allocator, word))
    yield from lengths
    could = could_line(prediction, advice.limits) if verdict is not None and advice.limits is not None else ""
    if could and not lengths:
        yield "Could", could
    if advice.suggestions and len(lengths) < 2:
        yield "Save", save_line(advice.suggestions, verdict, room)
    if prediction.host_bytes:
        yield "Host", f"{short_gib(prediction.host_bytes)} of host memory as well"
    if saving := prediction.extra.get("save_host_bytes"):
        yield "Saving", f"{short_gib(saving)} of host memory where the model is written"
    yield "Checked", checked(prediction)
    for text in prediction.warnings[:SHOWN_WARNINGS]:
        yield "Warning", text
    if (more := len(prediction.warnings) - SHOWN_WARNINGS) > 0:
        yield "", f"{more} more with --assumptions"


def could_line(prediction: Prediction, limits: Limits) -> str:
    """The largest micro-batch at this sequence length, and the longest sequence at this micro-batch."""
    setup = prediction.setup
    batch, sequence = limits.largest_batch, limits.longest_sequence
    sizes = []
    if batch is not None and batch != setup.micro_batch:
        sizes.append(f"batch {batch:,} × {setup.sequence_length:,}")
    if sequence is not None and sequence != setup.sequence_length:
        sizes.append(f"{setup.micro_batch:,} × {sequence:,}")
    if not sizes:
        return ""
    verb = "use up to" if batch is not None or sequence == setup.sequence_length else "fit"
    return f"{verb} {' or '.join(sizes)} tokens on this GPU"


def save_line(suggestions: Sequence[Suggestion], verdict: GpuVerdict | None, room: int) -> str:
    """What single changes save, as many as a line of `room` columns holds, and which of them make it fit."""
    found: list[str] = []
    for change in suggestions:
        text = f"{short_gib(change.saved_bytes)} {change.option}"
        if verdict is not None and verdict.verdict in ("tight", "no"):
            slack = (verdict.high_bytes or verdict.needed_bytes) - verdict.needed_bytes
            text += " (fits)" if change.device_bytes + slack <= verdict.usable_bytes else ""
        if found and len("    ".join([*found, text])) > room:
            break
        found.append(text)
    return "    ".join(found)


def next_steps(gpu: Gpu | None) -> str:
    """The flags and commands that say more."""
    fits = "--gpu NAME" if gpu is None else f"fit --gpu {gpu.name}"
    return f"--explain tensors · --assumptions · {fits} · report -o page.html"
