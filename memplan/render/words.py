"""The verdict in words and signs, for every screen; the common GPUs by verdict; lines of parts that fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from memplan.planner.prediction import GpuVerdict

GLYPHS: dict[str | None, str] = {"fits": "✓", "tight": "~", "no": "✗", None: "≥"}
WORDS: dict[str | None, tuple[str, str]] = {
    "fits": ("fits", "bold green"),
    "tight": ("tight", "bold yellow"),
    "no": ("does not fit", "bold red"),
    None: ("at least", "bold yellow"),
}
"""Verdict -> its words and style. None: something is not counted, so what is predicted is a lower bound."""
_ASCII = str.maketrans("✓✗≥×·–…█░", "+x>x---#.")  # one for one, so that styles stay where they are
MOST_NAMED = 2  # more GPUs than this are given as a range


def words_of(verdict: str | None) -> tuple[str, str, str]:
    """(sign, word in capitals, style) of a verdict."""
    word, style = WORDS[verdict]
    return GLYPHS[verdict], word.upper(), style


def ascii_text(text: Text) -> Text:
    """The same line for a terminal without these signs."""
    return Text(text.plain.translate(_ASCII), style=text.style, spans=text.spans)


def names_of(gpus: Sequence[GpuVerdict]) -> Iterator[Text]:
    """GPUs by verdict, smallest first: `✓ fits rtx-3060 … b200 (14)`; where something is not counted, those
    that are too small even so; then those that cannot run the setup.
    """
    for verdict in ("fits", "tight", "no"):
        names = [each.name for each in gpus if each.verdict == verdict]
        if names:
            word, style = WORDS[verdict]
            yield Text(f"{GLYPHS[verdict]} {word} ", style=style).append(_named(names), style="not bold")
    for which, why in unable(gpus):
        yield Text("– ", style="bold").append(f"{which}: {why}", style="not bold")


def _named(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)})"


def unable(gpus: Sequence[GpuVerdict]) -> list[tuple[str, str]]:
    """The GPUs that cannot run the setup, by reason: (names, why)."""
    reasons: dict[str, list[str]] = {}
    for verdict in gpus:
        if verdict.headroom_bytes is None and verdict.why is not None:
            reasons.setdefault(verdict.why, []).append(verdict.name)
    return [(", ".join(names), why) for why, names in reasons.items()]


def fold(parts: Sequence[Text], width: int) -> list[Text]:
    """The parts on as few lines as `width` allows, each part whole where it can be."""
    for gap in (4, 2):
        if sum(part.cell_len for part in parts) + gap * (len(parts) - 1) <= width:
            return [Text(" " * gap).join(parts)]
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + 4 + part.cell_len <= width:
            lines[-1] = Text("    ").join([lines[-1], part])
        else:
            lines.append(part)
    return lines
