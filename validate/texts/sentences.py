"""A text in sentences: Markdown or plain text, each sentence with its place, what kind of line it stands in and
the headings above it. Code, links and headings are kept apart from prose, a table is read cell by cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

PROSE, CELL, COMMENT = "prose", "cell", "comment"
HEADING, CODE, LINK, FORMULA, DATE = "heading", "code", "link", "formula", "date"
NO_CLAIM = (HEADING, CODE, LINK, FORMULA, DATE)
"""Kinds of line that state nothing about memory by themselves: a heading names, code sets, a link points."""


@dataclass(frozen=True)
class Sentence:
    """One sentence: its words, its place in the text (`start`, `end`: offsets; `line` from 1), the kind of line,
    the headings and list items above it (outermost first), and what was said before it on the same line.
    """

    text: str
    start: int
    end: int
    line: int
    kind: str = PROSE
    above: tuple[str, ...] = ()
    before: str = ""
    row: str = ""
    column: str = ""


_END = re.compile(r"[。！？!?]+[”\"'’」』）)]*|\.(?=\s+[A-Z\"“*\u3400-\u9fff]|\s*$)")
_NOT_AN_END = re.compile(r"\b(?:e\.g|i\.e|vs|approx|etc|fig|eq|no|cf|al)\.$", re.IGNORECASE)
_FENCE = re.compile(r"^\s*(?:```|~~~)")
_HEADING = re.compile(r"^\s*#{1,6}\s+(.*)$")
_NUMBERED_HEADING = re.compile(
    r"^\s*(?:[一二三四五六七八九十]{1,3}、|第[一二三四五六七八九十]{1,3}[章节阶]|\d+(?:\.\d+){1,3}\s)\s*\S.{0,58}$"
)
_MARKER = re.compile(r"^\s*(?:[-+*•·](?=\s)|\d{1,3}[)、]|\d{1,3}\.(?!\d)|[（(]\d{1,2}[)）])\s*")
_LINK = re.compile(
    r"^\s*(?:<img\b.*>|<?https?://\S+>?|!\[.*\]\(.*\)|>.*https?://.*|<center>.*|\*<center>.*)\s*$"
)
_FORMULA = re.compile(r"^\s*(?:\$\$|\\\[|\\begin|`[^`]+`$|[A-Za-z_']+\s*=\s*[\w\s+*/().^'-]+$)")
_RULE = re.compile(r"^[\s|:*_=-]*$")
_LEAD = re.compile(r"^\**([^。！？:：]{1,40}?)\**\s*[:：]")
_DATE = re.compile(
    r"^[>\s]*(?:更新|发布|[Uu]pdated|[Pp]ublished)?\s*[:：]?\s*\d{4}[-/年]\d{1,2}[-/月]\d{1,2}"
)
_CALL = re.compile(r"^[\w.]+\s*(?:=|\().*")
_COMMENT = re.compile(r"(?:^|\s)#\s*(\S.*)$")
DEEPEST = 6
MOST_CODE = 2000
"""Characters of code before a remark that say what it is a remark on."""


def sentences(text: str) -> Iterator[Sentence]:
    """Every sentence of a text, in its order."""
    reader, at = _Lines(), 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        yield from reader.read(line, at, number)
        at += len(line)


@dataclass
class _Lines:
    """What the lines so far have opened: headings and list items by depth, a table, a fence, a formula."""

    headings: list[tuple[int, str]] = field(default_factory=list)
    items: list[tuple[int, str]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    fenced: bool = False
    formula: bool = False
    code: str = ""

    def read(self, line: str, start: int, number: int) -> Iterator[Sentence]:
        """The sentences of one line."""
        bare = line.rstrip()
        if _FENCE.match(line):
            self.fenced, self.code = not self.fenced, ""
        elif self.fenced:
            yield from _of_code(line, start, number, tuple(h for _, h in self.headings), self.code)
            self.code = self.code[-MOST_CODE:] + line
        elif bare.strip() == "$$":
            self.formula = not self.formula
        elif not bare.strip() or (_RULE.match(bare) and not self.columns):
            self.columns, self.items = [], [] if bare.strip() else self.items
        elif _HEADING.match(bare) or _NUMBERED_HEADING.match(bare):
            yield self._heading(bare, start, number)
        elif _DATE.match(bare) or _LINK.match(bare) or self.formula:
            kind = DATE if _DATE.match(bare) else FORMULA if self.formula else LINK
            yield Sentence(bare.strip(), start, start + len(bare), number, kind)
        elif bare.lstrip().startswith("|"):
            yield from self._row(bare, start, number)
        else:
            yield from self._prose(line, bare, start, number)

    def _heading(self, bare: str, start: int, number: int) -> Sentence:
        heading = _HEADING.match(bare)
        level = len(bare) - len(bare.lstrip("#")) if heading else DEEPEST - 1
        words = heading.group(1) if heading else bare.strip()
        over = [(n, h) for n, h in self.headings if n < level]
        self.headings, self.items, self.columns = [*over, (level, words)], [], []
        return Sentence(words, start, start + len(bare), number, HEADING, _above(over, []))

    def _row(self, bare: str, start: int, number: int) -> Iterator[Sentence]:
        """A table's row; its first row names the columns."""
        cells = [cell.strip() for cell in bare.strip().strip("|").split("|")]
        if _RULE.match(bare):
            return
        if not self.columns:
            self.columns = cells
            return
        yield from _of_row(bare, start, number, cells, self.columns, _above(self.headings, []))

    def _prose(self, line: str, bare: str, start: int, number: int) -> Iterator[Sentence]:
        """A line of prose; a list item's first words, and a short line, stand above what follows."""
        self.columns = []
        marker = _MARKER.match(line)
        indent = len(line) - len(line.lstrip())
        self.items = [(n, i) for n, i in self.items if n < indent]
        body = marker.end() if marker else indent
        yield from _of_prose(line[body:].rstrip(), start + body, number, _above(self.headings, self.items))
        lead = _LEAD.match(line[body:])
        if marker and lead:
            self.items = [*self.items, (indent, lead.group(1).strip("*` "))]
        elif not marker and len(bare.strip()) <= 40 and not _END.search(bare):
            over = [(n, h) for n, h in self.headings if n < DEEPEST]
            self.items, self.headings = [], [*over, (DEEPEST, bare.strip(" *:：`"))]


def _above(headings: list[tuple[int, str]], items: list[tuple[int, str]]) -> tuple[str, ...]:
    return (*(h for _, h in headings), *(i for _, i in items))


def _of_code(line: str, start: int, number: int, above: tuple[str, ...], before: str) -> Iterator[Sentence]:
    """A line of code, and the remark behind it, which may state something."""
    remark = _COMMENT.search(line)
    end = start + len(line.rstrip())
    if remark is None:
        if line.strip():
            yield Sentence(line.strip(), start, end, number, CODE, above)
        return
    code = line[: remark.start()].strip()
    if code:
        yield Sentence(code, start, start + remark.start(), number, CODE, above)
    words = remark.group(1).strip()
    marker = _MARKER.match(words)
    words = words[marker.end() :] if marker else words
    kind = CODE if _CALL.match(words) or not words else COMMENT
    yield Sentence(words, end - len(words), end, number, kind, above, before)


def _of_row(
    line: str, start: int, number: int, cells: list[str], columns: list[str], above: tuple[str, ...]
) -> Iterator[Sentence]:
    """The cells of a table's row, each under its column and beside its row's name."""
    at = 0
    for n, cell in enumerate(cells):
        at = line.find(cell, at) if cell else at
        if cell and n:
            column = columns[n] if n < len(columns) else ""
            place = start + at
            yield Sentence(cell, place, place + len(cell), number, CELL, above, row=cells[0], column=column)
        at += len(cell)


def _of_prose(body: str, start: int, number: int, above: tuple[str, ...]) -> Iterator[Sentence]:
    at = 0
    for end in (*(m.end() for m in _END.finditer(body)), len(body)):
        words = body[at:end]
        if _NOT_AN_END.search(words) or not words.strip():
            continue
        kind = FORMULA if _FORMULA.match(words) and not re.search(r"[\u3400-\u9fff]{3}", words) else PROSE
        lead = len(words) - len(words.lstrip())
        yield Sentence(
            words.strip(), start + at + lead, start + at + len(words.rstrip()), number, kind, above, body[:at]
        )
        at = end


NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])\d|[百千万亿]+(?=参数|规模|级|亿)|几百|几十|数十|数百|[两二三四五六七八九十]倍|一半|千分之|百分之"
    r"|\b(?:hundreds?|dozens?|thousands?|twice|half|quarter|third|billions?|double)\b"
)
"""A number in digits or in words; the digit of a name (W0, A100's 100) is one only where it stands apart."""
