"""A checked text as text: each sentence that was read with its verdicts, the unread ones, the counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memplan.validate.texts.check import Checked, condition, corrected, counts, has_number
from memplan.validate.verdict_sentence import verdict_sentence

COLORS = {
    "supported": "green",
    "refuted": "red",
    "depends": "yellow",
    "not_checkable": "dim",
    "not_understood": "magenta",
    "no_claim": "dim",
}
WORDS = {
    "en": {
        "supported": "supported",
        "refuted": "refuted",
        "depends": "depends",
        "not_checkable": "not checkable",
        "not_understood": "not understood",
        "no_claim": "no claim",
        "line": "line",
        "condition": "Condition",
        "right": "Right",
        "unread": "Not understood, with a number in it:",
        "others": "Not understood, without a number: {n}",
        "sentences": "sentences",
        "numbers": "{read} of {all} sentences with a number were read.",
        "none": "Nothing here was read as a claim about training memory.",
    },
    "zh": {
        "supported": "成立",
        "refuted": "不成立",
        "depends": "视条件",
        "not_checkable": "无法检验",
        "not_understood": "未读懂",
        "no_claim": "非论断",
        "line": "行",
        "condition": "条件",
        "right": "应为",
        "unread": "未读懂（含数字）：",
        "others": "未读懂（不含数字）：{n}",
        "sentences": "句",
        "numbers": "含数字的句子 {all} 句，读懂 {read} 句。",
        "none": "没有读出关于训练显存的论断。",
    },
}


def numbered(checked: Sequence[Checked]) -> tuple[int, int]:
    """(read, all) of the sentences with a number that may state something."""
    told = [one for one in checked if one.status != "no_claim" and has_number(one.sentence)]
    return sum(one.status != "not_understood" for one in told), len(told)


def screen(checked: Sequence[Checked], lang: str, explain: bool = False) -> Iterator[RenderableType]:
    """Every sentence that was read, then those that were not, then how many of each."""
    words = WORDS[lang]
    colon = "：" if lang == "zh" else ": "
    if not any(one.results for one in checked):
        yield Text(words["none"], style="bold")
    for one in checked:
        if one.results:
            yield _block(one, lang)
    unread = [one for one in checked if one.status == "not_understood"]
    with_number = [one for one in unread if has_number(one.sentence)]
    without = [one for one in unread if not has_number(one.sentence)]
    if with_number:
        yield Text(f"\n{words['unread']}", style="bold")
    for one in with_number:
        yield Text(f"{one.sentence.line:>5}  {one.sentence.text} ({one.unread(lang)})")
    if without:
        yield Text(f"\n{words['others'].format(n=len(without))}", style="bold")
    for one in without if explain else ():
        yield Text(f"{one.sentence.line:>5}  {one.sentence.text}")
    found = counts(checked)
    told = ", ".join(f"{found[status]} {words[status]}" for status in found if found[status])
    yield Text(f"\n{len(checked)} {words['sentences']}{colon}{told}", style="bold")
    read, every = numbered(checked)
    yield Text(words["numbers"].format(read=read, all=every))


def _block(one: Checked, lang: str) -> Table:
    words = WORDS[lang]
    colon = "：" if lang == "zh" else ": "
    body = Text(one.sentence.text, style="bold")
    for result in one.results:
        reading = (result.claim.zh if lang == "zh" else "") or result.claim.reading
        body.append(f"\n{reading}", style="")
        sentence = verdict_sentence(result, lang)
        body.append(f"\n{sentence}", style=f"not bold {COLORS[result.verdict]}")
        told, better = condition(result, lang), corrected(result, lang)
        if told not in sentence:
            body.append(f"\n{words['condition']}{colon}{told}", style="not bold dim")
        if better and told not in better:
            body.append(f"\n{words['right']}{colon}{better}", style="not bold")
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=5, overflow="fold")
    grid.add_column(width=14)
    grid.add_column(ratio=1, overflow="fold")
    grid.add_row(
        Text(str(one.sentence.line), style="bold"), Text(words[one.status], style=COLORS[one.status]), body
    )
    return grid
