"""What the structures of a page have in common, each written once: texts, kinds of rows, and every size as
one JavaScript function of B, S and R.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable

from memplan.planner.formula.program import SYMBOLS
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.symbolic.codegen import javascript
from memplan.planner.formula.symbolic.expr import Expr, Sized
from memplan.planner.tables.components import COMPONENTS

WINDOW = 2**15  # how far back gzip looks


class PageTables:
    """Places of what a page holds once, given out in the order in which they are first asked for."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[str, int]] = {
            "rows": {},
            "items": {},
            "log": {},
            "steps": {},
            "which": {},
        }
        self._words: dict[str, int] = {}
        self._kinds: dict[tuple[int, ...], int] = {}
        self._sizes: dict[Expr, int] = {}
        self._last: dict[str, str] = {}
        self.compressed = 0  # bytes of all texts, each compressed behind the one before of its kind

    def text(self, what: str, text: str) -> int:
        """The place of a long text among those of its kind, which stand together: they are much alike."""
        known = self._texts[what]
        if text not in known:
            known[text] = len(known)
            before = self._last.get(what, "")[-WINDOW:].encode()
            packer = zlib.compressobj(6, zdict=before)
            self.compressed += len(packer.compress(text.encode()) + packer.flush())
            self._last[what] = text
        return known[text]

    def size(self, size: Expr) -> int:
        """The place of a size in what the function returns."""
        return self._sizes.setdefault(size, len(self._sizes))

    def kind(self, name: str, shape: Iterable[Sized], dtype: str, component: str, why: str) -> int:
        """The place of a kind of row: what its row says beside its count and bytes."""
        words = (self._words.setdefault(word, len(self._words)) for word in (name, dtype, why))
        sizes = (~self.size(each) if isinstance(each, Expr) else each for each in shape)
        return self._kinds.setdefault(
            (*words, COMPONENTS.index(component), *sizes),  # type: ignore[arg-type]
            len(self._kinds),
        )

    def rows(self, rows: Iterable[SymbolicRow]) -> int:
        """The place of a text with "kind size count" of each row; its size is that of all its tensors."""
        triples = (
            (self.kind(r.name, r.shape, r.dtype, r.component, r.why), self.size(r.size), r.count)
            for r in rows
        )
        return self.text("rows", " ".join(str(number) for triple in triples for number in triple))

    def javascript(self) -> str:
        """The members of a JavaScript object: texts of each kind, words, kinds (places of name, dtype and
        why, the component's number, the shape: a number, or ~place where it is a size) and `f`.
        """
        values = {
            "texts": {what: list(texts) for what, texts in self._texts.items()},
            "words": list(self._words),
            "kinds": [list(kind) for kind in self._kinds],
        }
        head = json.dumps(values, separators=(",", ":"))[1:-1]
        return f'{head},\n"f": {javascript(list(self._sizes), SYMBOLS)}'
