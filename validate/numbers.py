"""Numbers as people write them."""

from __future__ import annotations

import re

from memplan.profiler.localized_message import LocalizedMessage, said

Value = int | float | bool | str


def number(value: float, unlike: float | None = None) -> str:
    """Whole numbers with commas, others with four significant digits; more where four would show another
    number, `unlike`.
    """
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    text = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.1f}"
    digits = 5
    while unlike is not None and value != unlike and digits < 16 and float(text.replace(",", "")) == unlike:
        text, digits = f"{value:,.{digits}g}", digits + 1
    return text


def shown(value: Value, unit: str = "", unlike: float | None = None) -> str:
    """A value and its unit as text; true and false as yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{number(value, unlike)}{'' if unit in ('', 'x', '%') else ' '}{unit}"


def displayed(name: str, kind: str = "gpu") -> str:
    """A GPU of the table as people write it (RTX 4090, A100 80GB); a budget and other names as they stand."""
    if kind != "gpu" or re.fullmatch(r"[\d.]+ ?[kmgt]i?b", name.lower()):
        return name
    return name.upper().replace("-", " ")


def amount(value: Value, unit: str = "", unlike: float | None = None) -> LocalizedMessage:
    """A value and its unit as a sentence."""
    if isinstance(value, bool | str):
        return word(value)
    return said(
        "{number}{unit}",
        number=number(value, unlike),
        unit=said(f"{'' if unit in ('', 'x', '%') else ' '}{unit}"),
    )


def word(value: Value) -> LocalizedMessage:
    """A value as a sentence: yes, no and none are words of a language."""
    text = shown(value)
    return said(text) if text in ("yes", "no", "none") else said("{value}", value=text)
