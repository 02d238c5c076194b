"""Where in a TOML file something stands: tomllib reports no lines, so keys and values are found by their
text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from memplan.planner.tables.errors import UsageError


@dataclass(frozen=True)
class Place:
    """Where in the file an error is: finds the line of a key inside the n-th table of a kind, since tomllib
    reports none.
    """

    path: str
    lines: tuple[str, ...]
    header: tuple[tuple[str, int], ...] = ()  # ("claim", 3), ("part", 1)

    def inside(self, kind: str, index: int) -> Place:
        """The place of the index-th table of a kind in this one."""
        return Place(self.path, self.lines, (*self.header, (kind, index)))

    def line(self, key: str) -> int:
        """The 1-based line of `key`, or of the table's own header where the key is absent."""
        start, stop = self._span()
        for number in range(start, stop):
            text = self.lines[number].strip()
            if text.partition("=")[0].strip().strip('"') == key and "=" in text:
                return number + 1
        return start + 1 if self.header else 1

    def blame(self, message: str) -> int:
        """The 1-based line of this table that holds a value which `message` quotes; the table's header where
        none does.
        """
        start, stop = self._span()
        quoted = [word for word in re.findall(r"'([^']+)'", message) if len(word) > 2]
        named = [word for word in re.findall(r"^([a-z_]+) = ", message)]
        for number in range(start, stop):
            if any(word in self.lines[number] for word in (*quoted, *named)):
                return number + 1
        return start + 1

    def _span(self) -> tuple[int, int]:
        start, stop, name = 0, len(self.lines), ""
        for kind, index in self.header:
            name = f"{name}.{kind}" if name else kind
            heads = [n for n in range(start, stop) if self.lines[n].strip() == f"[[{name}]]"]
            if index >= len(heads):
                break
            start, stop = heads[index], heads[index + 1] if index + 1 < len(heads) else stop
        return start, stop

    def error(self, key: str, message: str) -> UsageError:
        """An error at a key of this table, with path and line."""
        return UsageError(f"{self.path}, line {self.line(key)}: {key}: {message}")
