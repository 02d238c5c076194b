"""The page of a checked text: the text as it stands, every sentence that was read marked with its verdict, a
note below; one self-contained file that loads and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from memplan.planner import __version__
from memplan.render.check import WORDS, numbered
from memplan.validate.claims import ClaimResult
from memplan.validate.texts.check import Checked, condition, corrected, counts, has_number
from memplan.validate.texts.sentences import CODE, HEADING, LINK
from memplan.validate.verdict_sentence import verdict_sentence

HERE = Path(__file__).parent
_HASHES = re.compile(r"^\s*#{1,6}\s+")
_BOLD = re.compile(r"\*\*([^*<>]+)\*\*")


def page(name: str, text: str, checked: Sequence[Checked], lang: str) -> str:
    """The whole page; every string of the text is escaped."""
    parts = {
        "LANG": "zh-Hans" if lang == "zh" else "en",
        "TITLE": escape(f"{name}: memplan check"),
        "NAME": escape(name),
        "STYLE": (HERE / "check_page.css").read_text(encoding="utf-8"),
        "COUNTS": _counts(checked, lang),
        "BODY": "".join(_lines(text, checked, lang)),
        "UNREAD": _unread(checked, lang),
        "VERSION": escape(__version__),
    }
    made = (HERE / "check_page.html").read_text(encoding="utf-8")
    for key, value in parts.items():
        head, mark, tail = made.partition(f"@@{key}@@")
        made = head + value + tail if mark else made
        made = made.replace(f"@@{key}@@", value) if key in ("TITLE",) else made
    return made


def _counts(checked: Sequence[Checked], lang: str) -> str:
    found, words = counts(checked), WORDS[lang]
    pills = "".join(
        f'<span class="pill {one}">{found[one]} {words[one]}</span>' for one in found if found[one]
    )
    read, every = numbered(checked)
    told = escape(words["numbers"].format(read=read, all=every))
    return f'<p class="pills">{pills}</p><p class="muted">{told}</p>'


def _lines(text: str, checked: Sequence[Checked], lang: str) -> Iterator[str]:
    """The text line by line, as it stands; below each line the notes of its sentences."""
    by_line: dict[int, list[Checked]] = {}
    for one in checked:
        by_line.setdefault(one.sentence.line, []).append(one)
    at = noted = 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        end = at + len(line)
        marked = [one for one in by_line.get(number, []) if one.results or one.status == "not_understood"]
        body, done, notes = "", at, list[str]()
        for one in marked:
            start, stop = max(done, one.sentence.start), max(done, one.sentence.end)
            kind = one.status if one.results or has_number(one.sentence) else "plain"
            body += escape(text[done:start]) + f'<mark class="{kind}">{escape(text[start:stop])}</mark>'
            if one.results:
                noted += 1
                body += f"<sup>{noted}</sup>"
                notes += [_note(result, lang, noted) for result in one.results]
            done = stop
        body += escape(text[done:end].rstrip("\n"))
        kinds = {one.sentence.kind for one in by_line.get(number, [])}
        heading = ' class="heading"' if HEADING in kinds else ""
        code = ' class="code"' if kinds & {CODE, LINK} else ""
        body = body if code else _emphasis(_HASHES.sub("", body) if heading else body)
        yield f"<p{heading or code}>{body}</p>\n" if body.strip() else ""
        yield "".join(notes)
        at = end


def _emphasis(body: str) -> str:
    """Markdown's bold as bold, in a line that is escaped already."""
    return _BOLD.sub(r"<b>\1</b>", body)


def _note(result: ClaimResult, lang: str, number: int) -> str:
    """What came of one claim, under the number that stands behind its sentence."""
    words = WORDS[lang]
    reading = (result.claim.zh if lang == "zh" else "") or result.claim.reading
    sentence = verdict_sentence(result, lang)
    better, told, colon = corrected(result, lang), condition(result, lang), "：" if lang == "zh" else ": "
    rows = [
        f'<sup>{number}</sup> <b class="{result.verdict}">{words[result.verdict]}</b> {escape(reading)}',
        escape(sentence),
    ]
    if told not in sentence:
        rows += [f'<span class="muted">{words["condition"]}{colon}{escape(told)}</span>']
    rows += [f"{words['right']}{colon}{escape(better)}"] if better and told not in better else []
    return f'<aside class="{result.verdict}">{"".join(f"<div>{row}</div>" for row in rows)}</aside>\n'


def _unread(checked: Sequence[Checked], lang: str) -> str:
    unread = [one for one in checked if one.status == "not_understood" and has_number(one.sentence)]
    if not unread:
        return ""
    items = "".join(
        f'<li value="{one.sentence.line}">{escape(one.sentence.text)} '
        f'<span class="muted">({escape(one.unread(lang))})</span></li>'
        for one in unread
    )
    return f"<section><h2>{escape(WORDS[lang]['unread'])}</h2><ol>{items}</ol></section>"
