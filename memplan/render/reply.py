"""A reply to a question as text: the answer in one sentence, what it rests on, and the words not used."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from memplan.render.ask import screen, three_columns
from memplan.validate.chinese import in_language
from memplan.validate.questions.reply import Reply, in_words

WORDS = {
    "en": {"not_used": "not used", "default": "default", "assumed": "interpreted as", "found": "found"},
    "zh": {"not_used": "没有用到", "default": "未说明，取默认", "assumed": "读作", "found": "结果"},
}


def reply_screen(reply: Reply, explain: bool = False) -> Iterator[RenderableType]:
    """One reply from top to bottom, in the question's language."""
    lang = reply.question.lang
    words = WORDS[lang]
    if reply.answer is not None:
        first, *rest = screen(reply.answer, explain)
        yield Text(reply.line[lang], style=getattr(first, "style", "bold"))
        yield from _not_used(reply)
        yield from rest
        return
    yield Text(reply.line[lang], style="bold")
    yield from _not_used(reply)
    translate = in_language(lang)
    assumed = [
        (
            translate(a.name),
            (a.zh if lang == "zh" else "") or a.value,
            f"“{a.words}”" if a.words else words["default"],
        )
        for a in reply.question.assumptions
    ]
    found = [(row.what[lang], in_words(row.value, lang), row.remark[lang]) for row in reply.rows]
    for title, lines in ((words["assumed"], assumed), (words["found"], found)):
        if lines:
            yield Text()
            yield three_columns(title, lines, "left")


def _not_used(reply: Reply) -> Iterator[Text]:
    if reply.not_used:
        listed = ", ".join(reply.not_used) if reply.question.lang == "en" else "、".join(reply.not_used)
        colon = ": " if reply.question.lang == "en" else "："
        yield Text(f"{WORDS[reply.question.lang]['not_used']}{colon}{listed}", style="yellow")
