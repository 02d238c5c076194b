"""The tables of `memplan list`, for a terminal: what to show of each kind of row is a table too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memplan.planner.tables.units import gib
from memplan.render.text import count, short_gib

Column = tuple[str, Literal["left", "right"], Callable[[dict[str, Any]], str]]


def _rate(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None else "??"


def _known(gpu: dict[str, Any]) -> str:
    """How its usable bytes are known, in one word."""
    derived = {"not measured": "derived", "a budget": "budget"}
    return next((word for start, word in derived.items() if gpu["source"].startswith(start)), "reported")


def _unverified(gpus: list[dict[str, Any]]) -> str:
    """The GPUs whose kernels are not modeled, on one line: their names and what is usable."""
    names = ", ".join(f"{gpu['name']} {short_gib(gpu['usable_bytes'])}" for gpu in gpus)
    return f"AMD and Apple: kernels not modeled, so answers say at least: {names}"


def _recipe(row: dict[str, Any]) -> str:
    only = [f"only {', '.join(row['methods'])}"] if row["methods"] else []
    return "; ".join((row["summary"], *only, *row["notes"]))


COLUMNS: dict[str, tuple[Column, ...]] = {
    "models": (
        ("name", "left", lambda r: r["name"]),
        ("parameters", "right", lambda r: count(r["parameters"])),
        ("also called", "left", lambda r: ", ".join((*r["aliases"], *r["ids"]))),
    ),
    "gpus": (
        ("name", "left", lambda r: r["name"]),
        ("sold as", "right", lambda r: f"{r['marketing_gb']:g} GB"),
        ("usable", "right", lambda r: gib(r["usable_bytes"])),
        ("GB/s", "right", lambda r: _rate(r["bandwidth_gbs"])),
        ("TFLOPS", "right", lambda r: _rate(r["bf16_tflops"])),
        ("usable is", "left", _known),
    ),
    "methods": (
        ("name", "left", lambda r: r["name"]),
        ("trains", "left", lambda r: r["trains"].replace("_", " ")),
        ("what it is", "left", lambda r: r["summary"]),
    ),
    "optimizers": (
        ("name", "left", lambda r: r["name"]),
        (
            "states per trained tensor",
            "left",
            lambda r: ", ".join(f"{s['name']} ({s['rule']})" for s in r["states"]) or "none",
        ),
        ("step", "left", lambda r: "/".join(r["modes"]) + (", paged" if r["paged"] else "")),
    ),
    "recipes": (
        ("name", "left", lambda r: r["name"]),
        ("the training stack, and memplan's own defaults in it", "left", _recipe),
    ),
    "tasks": (
        ("name", "left", lambda r: r["name"]),
        ("rows for each example", "right", lambda r: str(r["rows"])),
        ("head", "left", lambda r: r["head"]),
        (
            "what it is",
            "left",
            lambda r: r["summary"] + (f" ({r['not_modelled']})" if r["not_modelled"] else ""),
        ),
    ),
}
FOOT = {
    "gpus": (
        "usable: memory available to one process, CUDA context included. reported: from "
        "PyTorch's out-of-memory messages; derived: a low estimate from the nominal size; "
        "budget: memory shared with the system. TFLOPS: dense 16-bit, vendor's figure."
    ),
    "models": "Any Hugging Face id, folder or config.json works too.",
}


def listing(what: str, rows: list[dict[str, Any]]) -> list[RenderableType]:
    """One table of `memplan list`, with a line under it where it needs one; GPUs that have no verdict are one
    line, the last.
    """
    rest = [row for row in rows if not row.get("verified", True)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for index, (title, justify, _) in enumerate(COLUMNS[what]):
        table.add_column(title, justify=justify, no_wrap=index == 0, overflow="fold")
    for row in (row for row in rows if row not in rest):
        table.add_row(*(text(row) for _, _, text in COLUMNS[what]))
    foot = [Text(FOOT[what], style="dim")] if what in FOOT else []
    return [table, *foot, *([Text(_unverified(rest))] if rest else [])]
