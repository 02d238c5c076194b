"""An answer as text: the verdict first, then what was assumed, where it flips, and the derivation by hand."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from planner.units import gib
from validate.answer import Answer, summary_line

COLOURS = {"fits": "bold green", "tight": "bold yellow", "no": "bold red", "": "bold"}
WORDS = {
    "en": {
        "assumed": "read as", "default": "not said, so the default", "flips": "flips", "hand": "by hand", "sum": "sum by hand",
        "rest": "temporaries and the rest", "engine": "the engine's rows add up to", "at": "at the peak of",
        "context": "with the allocator's rounding and the CUDA context", "always": "holds everywhere tried", "never": "holds nowhere",
    },
    "zh": {
        "assumed": "读作", "default": "未说明，取默认", "flips": "分界", "hand": "手算", "sum": "手算合计",
        "rest": "临时量与其余", "engine": "程序逐行合计", "at": "峰值时刻",
        "context": "加上分配器取整与 CUDA 上下文", "always": "在试过的范围内都成立", "never": "在任何取值都不成立",
    },
}  # fmt: skip
NAMES_ZH = {
    "model": "模型", "method": "方法", "gpu": "显卡", "sequence_length": "序列长度", "micro_batch": "批大小", "rank": "秩",
    "checkpointing": "检查点", "weight_dtype": "权重精度", "optimizer": "优化器", "recipe": "配方", "cards": "卡数",
}  # fmt: skip


def screen(found: Answer) -> Iterator[RenderableType]:
    lang = found.question.lang
    words = WORDS[lang]
    yield Text(summary_line(found)[lang], style=COLOURS[found.verdict])
    yield Text()
    setup = found.prediction.setup
    said = {a.name for a in found.question.assumptions}
    lines = [
        (_name(a.name, lang), (a.zh if lang == "zh" else "") or a.value, f"“{a.words}”" if a.words else words["default"])
        for a in found.question.assumptions
    ]
    for name in ("recipe", "sequence_length", "micro_batch", "rank", "checkpointing", "optimizer"):
        if name not in said and not (name == "rank" and setup.method in ("full", "inference")):
            lines.append((_name(name, lang), str(getattr(setup, name)), words["default"]))
    yield _rows(words["assumed"], lines)
    if found.boundaries:
        flips = [
            (what, result.said(lang) or words["always" if result.verdict == "supported" else "never"], "")
            for what, result in found.boundaries
        ]
        yield _rows(words["flips"], flips)
    hand = [(line.zh if lang == "zh" else line.what, line.arithmetic, gib(line.bytes)) for line in found.derivation]
    hand.append((words["sum"], "", gib(found.by_hand)))
    peak = found.prediction.peak
    hand.append((words["rest"], "", gib(peak.allocated_bytes - found.by_hand)))
    hand.append((words["engine"], f"{words['at']} {peak.moment}", gib(peak.allocated_bytes)))
    hand.append((words["context"], "", gib(found.device)))
    yield _rows(words["hand"], hand)


def _name(name: str, lang: str) -> str:
    return NAMES_ZH.get(name, name) if lang == "zh" else name


def _rows(title: str, lines: list[tuple[str, str, str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table
