"""An answer as text: the verdict, the assumptions, the limits, the other methods, and the sum by hand."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from memplan.planner.tables.units import gib
from memplan.profiler.localized_message import Translate
from memplan.validate.answer import Answer, Beside
from memplan.validate.chinese import in_language, warning_in
from memplan.validate.summary import summary_line
from memplan.validate.sweep import PartResult

COLOURS = {
    "fits": "bold green",
    "tight": "bold yellow",
    "no": "bold red",
    "at least": "bold yellow",
    "": "bold",
}
WORDS = {
    "en": {
        "assumed": "interpreted as",
        "default": "default",
        "flips": "limits",
        "sequence_length": "max {low:,} tokens",
        "micro_batch": "max {low:,}",
        "hand": "worked out by hand, at the peak",
        "sum": "total by hand",
        "rest": "difference",
        "engine": "engine's total",
        "beside": "by method",
        "cards": "by number of GPUs",
        "context": "with allocator rounding and CUDA context",
        "always": "fits everywhere tried",
        "never": "never fits",
        "fits": "fits",
        "tight": "tight",
        "no": "does not fit",
        "at least": "at least",
        "": "",
        "warning": "warning: ",
        "more": "--explain every default and the sum by hand",
    },
    "zh": {
        "assumed": "读作",
        "default": "未说明，取默认",
        "flips": "分界",
        "sequence_length": "最大 {low:,} 个 token",
        "micro_batch": "最大 {low:,}",
        "hand": "手算（峰值时刻）",
        "sum": "手算合计",
        "rest": "余下",
        "engine": "程序逐行合计",
        "beside": "各方法",
        "cards": "按卡数",
        "context": "加上分配器取整与 CUDA 上下文",
        "always": "在试过的范围内都成立",
        "never": "在任何取值都不成立",
        "fits": "放得下",
        "tight": "勉强",
        "no": "放不下",
        "at least": "至少",
        "": "",
        "warning": "注意：",
        "more": "--explain 列出每个默认值和手算过程",
    },
}
DEFAULTS = ("recipe", "weight_dtype", "sequence_length", "micro_batch", "rank", "checkpointing", "optimizer")


def screen(found: Answer, explain: bool = False) -> Iterator[RenderableType]:
    """The answer from top to bottom, in the question's language: the verdict, what was read, the limits and
    the other methods; with `explain` every default and the sum by hand as well.
    """
    lang = found.question.lang
    words, translate = WORDS[lang], in_language(lang)
    yield Text(summary_line(found)[lang], style=COLOURS[found.verdict])
    for warning in found.warnings:
        yield Text(f"{words['warning']}{warning_in(lang, warning)}", style="yellow")
    for table in _tables(found, words, translate, explain):
        yield Text()
        yield table
    if not explain:
        yield from (Text(), Text(words["more"], style="dim"))


def _tables(found: Answer, words: dict[str, str], translate: Translate, explain: bool) -> Iterator[Table]:
    """What was assumed, where the verdict flips, what else there is, and the total by hand."""
    lang = found.question.lang
    if explain:
        yield three_columns(words["assumed"], list(_assumed(found, lang, translate)))
    else:
        read = ", ".join(f"{name} {value}" for name, value, _ in _assumed(found, lang, translate))
        yield three_columns(words["assumed"], [(read, "", "")])
    if found.cards:
        yield three_columns(
            words["cards"],
            [(f"{b.what} x {found.question.gpu}", gib(b.device), words[b.verdict]) for b in found.cards],
        )
    if found.boundaries:
        flips = [
            (
                _label(what, translate),
                _limit(what, result, lang),
                "",
            )
            for what, result in found.boundaries
        ]
        yield three_columns(words["flips"], flips)
    if found.beside:
        yield three_columns(words["beside"], [_method(b, words, translate) for b in found.beside])
    if found.derivation and explain:
        yield three_columns(words["hand"], list(_hand(found, words, translate)))


def _assumed(found: Answer, lang: str, translate: Translate) -> Iterator[tuple[str, str, str]]:
    words, setup = WORDS[lang], found.prediction.setup
    said = {a.name for a in found.question.assumptions}
    for a in found.question.assumptions:
        yield (
            translate(a.name),
            (a.zh if lang == "zh" else "") or a.value,
            f"“{a.words}”" if a.words else words["default"],
        )
    for name in DEFAULTS:
        if name not in said and not (name == "rank" and setup.method in ("full", "inference")):
            yield translate(name), str(getattr(setup, name)), words["default"]


def _limit(what: str, result: PartResult, lang: str) -> str:
    """How far a setting can go: the largest that fits, or always or never."""
    words = WORDS[lang]
    if not result.boundaries:
        return words["always" if result.verdict == "supported" else "never"]
    template = words.get(what.partition(", ")[0])
    if template is None or len(result.boundaries) > 1 or not result.boundaries[0].low_holds:
        return result.said(lang)
    return template.format(low=result.boundaries[0].low)


def _label(what: str, translate: Translate) -> str:
    """`sequence_length, checkpointing on` in the language."""
    name, _, more = what.partition(", ")
    return translate(name) + (translate(", ") + translate(more) if more else "")


def _method(b: Beside, words: dict[str, str], translate: Translate) -> tuple[str, str, str]:
    return translate(b.what), gib(b.device), words[b.verdict]


def _hand(found: Answer, words: dict[str, str], translate: Translate) -> Iterator[tuple[str, str, str]]:
    peak = found.prediction.peak
    for line in found.derivation:
        name = f"  {line.what.removeprefix('model.layers.*.')}" if line.of_which else translate(line.what)
        yield name, line.arithmetic.text(translate), gib(line.bytes)
    yield words["sum"], "", gib(found.by_hand)
    rest = peak.allocated_bytes - found.by_hand
    yield words["rest"], "", f"{'-' if rest < 0 else ''}{gib(abs(rest))}"
    yield words["engine"], translate(peak.moment), gib(peak.allocated_bytes)
    yield words["context"], "", gib(found.device)


def three_columns(title: str, lines: list[tuple[str, str, str]], last: JustifyMethod = "right") -> Table:
    """A titled table without a head; `last`: how its last column stands."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(justify=last, overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table
