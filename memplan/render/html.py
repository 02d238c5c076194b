"""The report page: one self-contained HTML file; every string that came from a file is escaped, and the page
may load nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from memplan.planner import __version__
from memplan.planner.answers.fit.frontier import Room
from memplan.planner.answers.report_changes import contents
from memplan.planner.answers.report_data import data, packed, script
from memplan.planner.inputs.models import names
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Prediction, Row
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.recipes import RECIPES
from memplan.planner.tables.units import gib
from memplan.render.text import label
from memplan.render.words import words_of

HERE = Path(__file__).parent
MOST_ROWS = 40
"""Rows that are there without JavaScript, which writes the others."""
LARGEST_PAGE = 400_000
SCRIPTS = (
    "report_formula",
    "report_verdict",
    "report_allocator",
    "report_parts",
    "report_traced",
    "report_pickers",
    "report_charts",
    "report_decide",
    "report_treemap",
    "report_changes",
    "report",
)


def page(
    spec: ModelSpec,
    setup: Setup,
    prediction: Prediction,
    gpu: Gpu,
    measured: dict[str, int] | None = None,
    *,
    model: str | None = None,
    wide: bool = True,
    served: bool = False,
) -> str:
    """The whole page as text, under 400 kB. `measured`: allocated bytes by moment of a recorded run of this
    setup; `model`: what a command calls the model, its name where None; `wide`: with as many losses and
    attentions of other methods as there is room for; `served`: by memplan ui, which it asks for the rest.
    """
    made = contents(spec, setup, wide and prediction.engine == "formula")  # the trace's rows need room
    if not made.found:
        raise UsageError(
            f"the formula has no rule for {spec.name} under method {setup.method}: a page needs the formula"
        )
    room = Room(gpu, prediction.accuracy.margin).around(spec, setup)
    values = data(made, prediction, gpu, room, model or spec.name, measured)
    values["words"] = {word or "least": words_of(word)[:2] for word in ("fits", "tight", "no", None)}
    if served:
        values["served"] = {
            "models": list(names()),
            "recipes": list(RECIPES),
            "optimizers": list(OPTIMIZERS),
            "methods": list(METHODS),
            "optimizer": setup.optimizer,
            "said": {"optimizer": setup.optimizer} if setup.origins.get("optimizer") == "user" else {},
        }
    components = prediction.moment(prediction.peak.moment).components
    parts = {
        "TITLE": escape(f"{spec.name}: memory of {setup.method} fine-tuning"),
        "NAME": escape(spec.name),
        "SUBJECT": escape(
            f"{setup.method}, recipe {setup.recipe}: micro-batch {setup.micro_batch:,} x "
            f"{setup.sequence_length:,} tokens"
        ),
        "VERDICT": escape(
            f"needs {'at least ' if prediction.not_modelled else ''}{gib(prediction.peak.device_bytes)}"
        ),
        "MOMENT": escape(label(prediction.peak.moment)),
        "COMPONENTS": "".join(
            f"<tr><td>{escape(label(name))}</td><td>{gib(size)}</td></tr>"
            for name, size in components.items()
        ),
        "ROWSNOTE": escape(_rows_note(prediction)),
        "ROWS": "".join(_row(row) for row in prediction.peak_rows[:MOST_ROWS]),
        "NOTES": _items((*prediction.assumptions, *_held(len(made.found), made.complete))),
        "WARNINGS": _warnings(prediction.warnings),
        "FOOTER": escape(
            f"memplan {__version__}; {prediction.engine} engine; {prediction.accuracy.evidence}; controls, "
            "grid and events: the formula"
        ),
        "DATA": _inline(values),
        "FORMULAS": packed(script(made)),
        "STYLE": (HERE / "report.css").read_text(encoding="utf-8"),
        "SCRIPT": _script(),
    }
    text = (HERE / "report.html").read_text(encoding="utf-8")
    pieces = text.split("@@")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _script() -> str:
    """The page's files of JavaScript as one function of their own, which waits for what is compressed."""
    parts = [(HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return '"use strict";\n(async () => {\n' + "".join(parts) + "})();"


def _held(count: int, complete: bool) -> tuple[str, ...]:
    """How many combinations of the pickers the page holds, and why not all."""
    why = "" if complete else ": more would not fit 400 kB or take too long to write"
    return (
        f"this page holds {count} combinations of method, checkpointing, loss, attention and kind of GPU"
        f"{why}; for any other it gives the command, and memplan ui computes it",
    )


def _warnings(lines: Sequence[str]) -> str:
    return (
        f'<section class="warnings"><h2>Know before you run</h2><ul>{_items(lines)}</ul></section>'
        if lines
        else ""
    )


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _rows_note(prediction: Prediction) -> str:
    shown, all_rows = min(MOST_ROWS, len(prediction.peak_rows)), len(prediction.peak_rows)
    what = (
        f"{all_rows} kinds of tensor"
        if shown == all_rows
        else f"the {shown} largest of {all_rows} kinds of tensor"
    )
    return f"{what} alive in {label(prediction.peak.moment)}, {gib(prediction.peak.allocated_bytes)} in all"


def _row(row: Row) -> str:
    shape = " x ".join(f"{size:,}" for size in row.shape)
    cells = (row.name, shape, row.dtype, f"{row.count:,}", f"{row.charged:,}", label(row.component), row.why)
    starts = ("", "", "", "", "", f'<span class="key" style="background:var(--{row.component})"></span>', "")
    classes = ("", "", "", ' class="n"', ' class="n"', "", "")
    texts = (escape(row.name).replace(".", ".<wbr>"), *map(escape, cells[1:]))
    return (
        f'<tr data-component="{escape(row.component)}" data-bytes="{row.charged}">'
        + "".join(f"<td{c}>{start}{text}</td>" for c, start, text in zip(classes, starts, texts, strict=True))
        + "</tr>"
    )


def _inline(value: Any) -> str:
    """JSON that cannot end its script element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
