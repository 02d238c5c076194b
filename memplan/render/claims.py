"""Claims and conflicts as text, in English or Chinese: verdict first, then the numbers that made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memplan.validate.chinese import in_language
from memplan.validate.claims import ClaimResult, ConflictResult, claim_text, said
from memplan.validate.evidence_kinds import beside, counted, kinds_of
from memplan.validate.verdict_sentence import verdict_sentence

COLOURS = {"supported": "green", "refuted": "red", "depends": "yellow", "not_checkable": "dim"}
VERDICT = {
    "en": {
        "supported": "supported",
        "refuted": "refuted",
        "depends": "depends",
        "not_checkable": "not checkable",
    },
    "zh": {"supported": "成立", "refuted": "不成立", "depends": "视条件", "not_checkable": "无法检验"},
}
WORDS = {
    "en": {
        "sources": "documents",
        "of": "claims",
        "contradict": "contradict",
        "agree": "can both hold",
        "side": "says",
        "arbiter": "computed",
        "evidence": "evidence",
        "conditions": "conditions",
        "counted": "Evidence, by claims: {told}.",
        "beside": "With a published figure, a dry run or a measurement: {n} of {all}.",
    },
    "zh": {
        "sources": "文档",
        "of": "条论断",
        "contradict": "相互矛盾",
        "agree": "可以同时成立",
        "side": "说",
        "arbiter": "计算结果",
        "evidence": "证据",
        "conditions": "条件",
        "counted": "按论断计的证据：{told}。",
        "beside": "有公开数据、空跑或实测佐证：{all} 条中 {n} 条。",
    },
}


def table(
    results: Sequence[ClaimResult], lang: str = "en", explain: bool = False
) -> Iterator[RenderableType]:
    """Every claim: number, verdict, what is claimed and where, and the evidence; then how many of each
    verdict, and on how many each kind of evidence bears.
    """
    for result in results:
        yield _block(
            result.claim.id,
            VERDICT[lang][result.verdict],
            COLOURS[result.verdict],
            _lines(result, lang, explain),
        )
    counts: Counter[str] = Counter(result.verdict for result in results)
    told = ", ".join(
        f"{counts[verdict]} {word}" for verdict, word in VERDICT[lang].items() if counts[verdict]
    )
    yield Text(f"\n{len(results)} {WORDS[lang]['of']}: {told}", style="bold")
    kinds = [kinds_of(result.parts) for result in results]
    comma = "，" if lang == "zh" else ", "
    told = comma.join(f"{n} {in_language(lang)(kind)}" for kind, n in counted(kinds).items())
    yield Text(WORDS[lang]["counted"].format(told=told))
    yield Text(WORDS[lang]["beside"].format(n=beside(kinds), all=len(results)))


def _lines(result: ClaimResult, lang: str, explain: bool) -> Iterator[Text]:
    claim = result.claim
    documents = ", ".join(dict.fromkeys(source.document for source in claim.sources))
    head = (claim.zh if lang == "zh" else "") or claim.reading
    yield Text(f"{head} [{documents}]" if documents else head, style="bold")
    if not explain:
        yield Text(verdict_sentence(result, lang))
        yield from _conditions(result, lang)
        yield Text(result.said(lang), style="dim")
        yield from _kinds(result, lang)
        return
    for source in claim.sources:
        yield Text(f"{source.document}: {source.quote}", style="dim")
    for part in result.parts:
        yield Text(
            ("" if part.part.decides else "(also) ") + said(part, lang),
            style="" if part.part.decides else "dim",
        )


def _conditions(result: ClaimResult, lang: str) -> Iterator[Text]:
    """What the verdict was found under; nothing where it hangs on no setting."""
    told = result.conditions[1 if lang == "zh" else 0]
    if told:
        yield Text(f"{WORDS[lang]['conditions']}{'：' if lang == 'zh' else ': '}{told}")


def _kinds(result: ClaimResult, lang: str) -> Iterator[Text]:
    """Which kinds of evidence the verdict rests on."""
    kinds = kinds_of(result.parts)
    if kinds:
        comma, colon = ("、", "：") if lang == "zh" else (", ", ": ")
        told = comma.join(in_language(lang)(kind) for kind in kinds)
        yield Text(f"{WORDS[lang]['evidence']}{colon}{told}", style="dim")


def conflict_table(results: Sequence[ConflictResult], lang: str = "en") -> Iterator[RenderableType]:
    """Every conflict: whether its sides exclude each other, which of them the computed arbiter finds true,
    and its evidence.
    """
    words = WORDS[lang]
    for result in results:
        conflict = result.conflict
        lines = [Text((conflict.zh if lang == "zh" else "") or conflict.about, style="bold")]
        for side in result.sides:
            claimed = claim_text(
                replace(conflict.arbiter, claimed=side.claimed, relation=side.relation), lang
            )
            lines.append(
                Text(
                    f"{side.document} “{side.quote}” ({claimed}): {VERDICT[lang][side.verdict]}",
                    style=COLOURS[side.verdict],
                )
            )
        lines.append(Text(f"{words['arbiter']}: {result.said(lang)}"))
        word, color = (words["contradict"], "red") if result.contradict else (words["agree"], "green")
        yield _block(conflict.id, word, color, lines)


def _block(name: str, verdict: str, color: str, lines: Iterable[Text]) -> Table:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=min(18, max(3, len(name))), overflow="fold")
    grid.add_column(width=13)
    grid.add_column(ratio=1, overflow="fold")
    body = Text("\n").join(lines)
    grid.add_row(Text(name, style="bold"), Text(verdict, style=color), body)
    return grid
