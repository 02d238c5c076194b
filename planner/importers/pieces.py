"""A file that people wrote -> its pieces of Python and of shell: fenced blocks of a text, cells of a
notebook, or the whole file. What cannot be read is named, and the rest is read.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, field

from memplan.planner.tables.errors import UsageError, shorten

FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py|python3|\{\.python\})[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL
)
SHELL_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:bash|sh|shell|zsh|console|shell-session|\{\.bash\})?[ \t]*\n(.*?)^[ \t]*```",
    re.MULTILINE | re.DOTALL,
)
MOST_SOURCE = 10**6
TIMED = ("%%time", "%%timeit", "%%capture", "%%script", "%%python")
"""Cell magics below which the cell is Python all the same."""


@dataclass(slots=True)
class Pieces:
    """`trees`: Python that was parsed, each to be read by itself; `shell`: text in which launch lines may
    stand; `skipped`: what could not be read, in words.
    """

    trees: list[ast.Module] = field(default_factory=list)
    shell: str = ""
    skipped: list[str] = field(default_factory=list)


def take_apart(source: str, name: str) -> Pieces:
    """The pieces of a source. Raises UsageError where all of it is Python that cannot be parsed."""
    if len(source) > MOST_SOURCE:
        raise UsageError(f"'{shorten(name)}' has more than {MOST_SOURCE:,} characters of code")
    if name.endswith(".ipynb"):
        return _notebook(source)
    fenced = [match.group(1) for match in FENCE.finditer(source)]
    shell = "\n".join(match.group(1) for match in SHELL_FENCE.finditer(source))
    if not fenced and name.endswith((".md", ".txt")):
        return _text(source, name, shell)
    pieces = Pieces(shell=shell)
    for number, text in enumerate(fenced or [source], 1):
        tree, line = _parsed(text)
        if tree is not None:
            pieces.trees.append(tree)
        elif len(fenced) <= 1 and not shell:
            where = f": line {line}" if line else ""
            raise UsageError(f"'{shorten(name)}' is not Python that can be read{where}")
        else:
            pieces.skipped.append(f"block {number} is not Python that can be read{_line(line)}: skipped")
    return pieces


def _text(source: str, name: str, shell: str) -> Pieces:
    """A text without Python in fences: pasted code, or a text with launch lines."""
    tree, line = _parsed(source)
    if tree is not None:
        return Pieces([tree], shell)
    if not shell and name.endswith(".md"):
        shell = source
    if not shell:
        raise UsageError(f"'{shorten(name)}' is not Python that can be read{_line(line)}")
    return Pieces([], shell)


def _notebook(source: str) -> Pieces:
    """A notebook's code cells, in order, as one module; one that cannot be parsed is left out and named."""
    try:
        cells = json.loads(source).get("cells", [])
        code = [
            (number, "".join(cell.get("source", [])))
            for number, cell in enumerate(cells, 1)
            if cell.get("cell_type") == "code"
        ]
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UsageError("the notebook is not valid JSON with cells") from None
    pieces, module = Pieces(), ast.Module([], [])
    for number, text in code:
        python, shell = _cell(text)
        pieces.shell += shell + "\n"
        tree, line = _parsed(python)
        if tree is None:
            pieces.skipped.append(f"cell {number} is not Python that can be read{_line(line)}: skipped")
        else:
            for node in ast.walk(tree):  # so that calls stay in the order of the cells
                if hasattr(node, "lineno"):
                    node.lineno += number * MOST_SOURCE
            module.body += tree.body
    pieces.trees.append(module)
    return pieces


def _cell(text: str) -> tuple[str, str]:
    """(Python, shell) of a cell: magics and shell escapes are no Python, nor the lines that continue them."""
    lines = text.splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("%%") and not first.startswith(TIMED):
        writes = re.match(r"%%writefile\s+\S+\.py\b", first)
        body = "\n".join(lines[1:])
        return (body, "") if writes else ("", body)
    python: list[str] = []
    shell: list[str] = []
    goes_on = False
    for line in lines:
        escaped = goes_on or line.lstrip().startswith(("%", "!"))
        goes_on = escaped and line.rstrip().endswith("\\")
        (shell if escaped else python).append(line.lstrip().lstrip("!%") if escaped else line)
    return "\n".join(python), "\n".join(shell)


def _parsed(text: str) -> tuple[ast.Module | None, int | None]:
    """The syntax tree without notebook magics, or None and the line that it fails in."""
    plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("%", "!")))
    try:
        return ast.parse(plain), None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return None, getattr(error, "lineno", None)


def _line(line: int | None) -> str:
    return f" (line {line})" if line else ""
