"""Arithmetic on what a text quotes: + - * / ** and brackets over numbers, read by our own little parser.
Nothing is executed.
"""

from __future__ import annotations

import re
from fractions import Fraction

from memplan.planner.tables.errors import UsageError, shorten

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?)|(\*\*|[-+*/()]))")
_MOST_TOKENS, _MOST_BITS = 200, 4096


def calculate(text: str) -> float:
    """The value of an expression such as `8 * (4096 + 4096) / 4096 ** 2`, computed exactly. Raises UsageError
    naming what is wrong.
    """
    tokens = _tokens(text)
    value, rest = _sum(tokens, 0, text)
    if rest != len(tokens):
        raise UsageError(f"'{shorten(text)}': '{tokens[rest]}' is not expected there")
    try:
        return float(value)
    except OverflowError:
        raise UsageError(f"'{shorten(text)}' is too large") from None


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise UsageError(
                f"'{shorten(text)}': '{shorten(text[at:].strip(), 12)}' is neither a number nor one of + - "
                "* / ** ( )"
            )
        tokens.append(match.group(1) or match.group(2))
        at = match.end()
    if not 0 < len(tokens) <= _MOST_TOKENS:
        raise UsageError(
            f"'{shorten(text)}': expected an expression of 1 to {_MOST_TOKENS} numbers and signs"
        )
    return tokens


def _sum(tokens: list[str], at: int, text: str) -> tuple[Fraction, int]:
    value, at = _product(tokens, at, text)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1, text)
        value = _bounded(value + right if tokens[at] == "+" else value - right, text)
        at = after
    return value, at


def _product(tokens: list[str], at: int, text: str) -> tuple[Fraction, int]:
    value, at = _power(tokens, at, text)
    while at < len(tokens) and tokens[at] in ("*", "/"):
        right, after = _power(tokens, at + 1, text)
        if tokens[at] == "/" and right == 0:
            raise UsageError(f"'{shorten(text)}' divides by zero")
        value = _bounded(value * right if tokens[at] == "*" else value / right, text)
        at = after
    return value, at


def _power(tokens: list[str], at: int, text: str) -> tuple[Fraction, int]:
    value, at = _atom(tokens, at, text)
    if at < len(tokens) and tokens[at] == "**":
        exponent, at = _power(tokens, at + 1, text)
        if exponent.denominator != 1 or abs(exponent) > 64 or (value == 0 and exponent < 0):
            raise UsageError(f"'{shorten(text)}': a power must be a whole number from -64 to 64")
        value = _bounded(value ** int(exponent), text)
    return value, at


def _atom(tokens: list[str], at: int, text: str) -> tuple[Fraction, int]:
    if at >= len(tokens):
        raise UsageError(f"'{shorten(text)}' ends where a number is expected")
    if tokens[at] == "-":
        value, at = _atom(tokens, at + 1, text)
        return -value, at
    if tokens[at] == "(":
        value, at = _sum(tokens, at + 1, text)
        if at >= len(tokens) or tokens[at] != ")":
            raise UsageError(f"'{shorten(text)}': a bracket is not closed")
        return value, at + 1
    if not tokens[at][0].isdigit():
        raise UsageError(f"'{shorten(text)}': '{tokens[at]}' stands where a number is expected")
    return Fraction(tokens[at]), at + 1


def _bounded(value: Fraction, text: str) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise UsageError(f"'{shorten(text)}' grows beyond {_MOST_BITS} bits")
    return value
