"""HTML as the Markdown that `sentences` reads: headings, list items, table rows and code keep their kind."""

from __future__ import annotations

from html.parser import HTMLParser

_SKIPPED = ("script", "style", "noscript", "template", "svg", "nav", "head")
_BLOCKS = (
    "p",
    "div",
    "section",
    "article",
    "blockquote",
    "ul",
    "ol",
    "table",
    "tbody",
    "thead",
    "figure",
    "center",
    "dd",
    "dt",
    "header",
    "footer",
    "main",
)


class _Reader(HTMLParser):
    """Collects the text of a page, block by block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self.now: list[str] = []
        self.skipped = 0
        self.code = 0
        self.cells: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a block, a row or a cell."""
        if tag in _SKIPPED:
            self.skipped += 1
        elif tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.close()
            self.lines.append("")
            self.now = ["#" * int(tag[1]) + " "]
        elif tag == "li":
            self.close()
            self.now = ["- "]
        elif tag == "tr":
            self.close()
            self.cells = []
        elif tag in ("td", "th") and self.cells is not None:
            self.now = []
        elif tag == "pre":
            self.close()
            self.lines.append("```")
            self.code += 1
        elif tag == "br" or tag in _BLOCKS:
            self.close()

    def handle_endtag(self, tag: str) -> None:
        """Close what the tag opened."""
        if tag in _SKIPPED:
            self.skipped = max(0, self.skipped - 1)
        elif tag in ("td", "th") and self.cells is not None:
            self.cells.append("".join(self.now).strip().replace("|", "/"))
            self.now = []
        elif tag == "tr" and self.cells is not None:
            self.lines.append("| " + " | ".join(self.cells) + " |")
            self.cells = None
        elif tag == "pre" and self.code:
            self.close()
            self.code -= 1
            self.lines.append("```")
        elif tag in _BLOCKS or tag in ("li", "h1", "h2", "h3", "h4", "h5", "h6"):
            self.close()
            self.lines += [""] if tag in ("table", "p", "ul", "ol") else []

    def handle_data(self, data: str) -> None:
        """Text, with white space as HTML has it, but for code."""
        if self.skipped:
            return
        if self.code:
            self.now.append(data)
        else:
            self.now.append(
                " ".join(data.split()) if not data[:1].isspace() else " " + " ".join(data.split())
            )
            if data[-1:].isspace():
                self.now.append(" ")

    def close_all(self) -> str:
        """The whole text."""
        self.close()
        return "\n".join(self.lines) + "\n"

    def close(self) -> None:  # HTMLParser.close flushes its buffer, which feed has emptied
        """End the block in progress."""
        text = "".join(self.now)
        if text.strip() and self.cells is None:
            self.lines += text.split("\n") if self.code else [text.strip()]
            self.now = []
        elif self.cells is None:
            self.now = []


def text_of_html(page: str) -> str:
    """The text of a page; nothing in it is run or loaded."""
    reader = _Reader()
    reader.feed(page)
    return reader.close_all()
