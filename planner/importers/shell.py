"""Launch lines inside a text: shell scripts, fenced blocks of a README, shell cells of a notebook. Lines are
read, never run; what a variable holds is known only where the text assigns it, plainly.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from memplan.planner.importers.launch import read_launch
from memplan.planner.importers.rules import Imported
from memplan.planner.tables.errors import UsageError, shorten

STARTS = (
    "accelerate",
    "torchrun",
    "deepspeed",
    "trl",
    "axolotl",
    "llamafactory-cli",
    "lmf",
    "swift",
    "unsloth",
)
ENDS = frozenset(("&&", "||", ";", "|", "&", ">", ">>", "2>&1", "<", "2>", "&>"))
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
ASSIGNMENT = re.compile(r"(?:export\s+|local\s+)?([A-Za-z_]\w*)=(\S*|\"[^\"]*\"|'[^']*')\s*")
MOST_LINES = 20_000
NO_TRAINING = ("pip", "venv", "http.server", "accelerate.commands.config", "json.tool")


def read_shell(text: str, name: str, folder: Path | None = None) -> Imported:
    """What the launch line in a text starts: the one that says most, where there are several. UsageError
    where none can be read, with the reason of the first.
    """
    found: list[Imported] = []
    refused: UsageError | None = None
    for words in launch_lines(text):
        try:
            found.append(read_launch(words, folder, beside=False))
        except UsageError as error:
            refused = refused or error
    if not found:
        raise refused or UsageError(
            f"'{shorten(name)}' has no launch line that memplan knows: expected accelerate launch, torchrun, "
            "deepspeed, trl, axolotl, llamafactory-cli, swift or python with a script"
        )
    best = max(found, key=lambda imported: (imported.model is not None, len(imported.by_status("used"))))
    if len(found) > 1:
        best.notes.append(f"one of {len(found)} launch lines in {shorten(name, 40)}: the one that says most")
    best.source = f"{name}: {best.source}"
    return best


def launch_lines(text: str) -> Iterator[list[str]]:
    """The words of each launch line of a text, with the variables that it assigns before put in."""
    known: dict[str, str] = {}
    joined = re.sub(r"\\\r?\n", " ", text)
    for line in joined.splitlines()[:MOST_LINES]:
        line = re.sub(r"^\s*(?:[$>!]\s+|!)", "", line).strip()
        assigned = ASSIGNMENT.fullmatch(line)
        if assigned:
            known[assigned.group(1)] = _expanded(assigned.group(2).strip("\"'"), known)
            continue
        words = _words(_expanded(line, known))
        if words and _starts(words):
            yield words


def _words(line: str) -> list[str]:
    """A line's words up to where another command begins."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # an open quote
        return []
    if words[:1] == ["memplan"]:
        words = words[words.index("--") + 1 :] if "--" in words else []
    end = next((index for index, word in enumerate(words) if word in ENDS), len(words))
    return [word.rstrip(";") for word in words[:end]]


def _starts(words: list[str]) -> bool:
    plain = [word for word in words if not re.fullmatch(r"[A-Za-z_]\w*=.*", word, re.DOTALL)]
    plain = plain[1:] if plain[:1] in (["env"], ["time"], ["nohup"], ["exec"]) else plain
    if not plain:
        return False
    first = Path(plain[0]).name
    if first == "accelerate":
        return plain[1:2] == ["launch"]
    if re.fullmatch(r"python[0-9.]*", first):
        return any(word.endswith(".py") for word in plain[1:6]) or (
            "-m" in plain[1:3] and not any(word in NO_TRAINING for word in plain)
        )
    return first in STARTS and len(plain) > 1


def _expanded(text: str, known: dict[str, str]) -> str:
    """Variables that were assigned or have a default put in; the others stay, for the reader to name."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(3)
        held = known.get(name, match.group(2))
        return match.group() if held is None else held

    return VARIABLE.sub(value, text[:100_000])
