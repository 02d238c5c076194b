"""How many tokens a run has and what a GPU costs for an hour: what a time and a cost are asked for."""

from __future__ import annotations

import re

from memplan.planner.tables.errors import UsageError
from memplan.validate.reading import Assumption, B, E, Reading

_SCALES = {
    "m": 10**6,
    "million": 10**6,
    "b": 10**9,
    "billion": 10**9,
    "t": 10**12,
    "trillion": 10**12,
    "万": 10**4,
    "百万": 10**6,
    "千万": 10**7,
    "亿": 10**8,
    "十亿": 10**9,
}
_TOKENS = re.compile(
    rf"{B}(\d+(?:\.\d+)?)\s*({'|'.join(sorted(_SCALES, key=len, reverse=True))})"
    rf"\s*个?\s*(?:training )?tokens?(?: dataset)?{E}"
)
_CURRENCY = r"dollars?|usd|euros?|eur|pounds?|美元|美金|刀|元|块钱?"
_HOUR = r"(?:per|an?|each|every|/|每)\s*(?:gpu[- ]?)?(?:hour|hr|h|小时)"
_PRICE = re.compile(
    rf"(?:(?<![\w.])(?:at )?[$€£]\s*(\d+(?:\.\d+)?)\s*(?:{_CURRENCY})?\s*(?:{_HOUR})?"
    rf"|{B}(?:at )?(\d+(?:\.\d+)?)\s*(?:{_CURRENCY})\s*{_HOUR}"
    rf"|(?:每小时|一小时)\s*(\d+(?:\.\d+)?)\s*(?:{_CURRENCY})){E}"
)
"""In any currency, which the answer keeps."""


def run_size(reading: Reading) -> tuple[int | None, float | None]:
    """(tokens, price of a GPU for an hour); None where the sentence has none."""
    tokens = price = None
    if match := _TOKENS.search(reading.text):
        tokens = round(float(match[1]) * _SCALES[match[2]])
        reading.found.append(Assumption("tokens", f"{tokens:,}", reading.take(match)))
    if match := _PRICE.search(reading.text):
        price = float(match[1] or match[2] or match[3])
        reading.found.append(Assumption("price", f"{price:g}/h", reading.take(match)))
    return tokens, price


def refuse_unused(intent: str, tokens: int | None, price: float | None) -> None:
    """Raises UsageError where a length or a price is said and neither a time nor a cost is asked for."""
    if intent not in ("time", "cost") and (tokens is not None or price is not None):
        what = f"a run of {tokens:,} tokens" if tokens is not None else f"a price of {price:g} an hour"
        raise UsageError(
            f"ask: {what} has its time and cost, and decides no memory: ask how long it takes, or what it costs"
        )
