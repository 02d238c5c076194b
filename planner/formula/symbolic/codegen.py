"""Symbolic sizes as code: one walk, two languages.

Three evaluators agree exactly: Python ints, NumPy int64 arrays (object arrays where a value could pass 2^63),
and JavaScript on BigInt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memplan.planner.formula.symbolic.expr import Expr, Monomial


class _Language:
    """How one language writes numbers, ceil-division and max."""

    def __init__(self, number: str, ceil: str, largest: str, assign: str) -> None:
        self.number, self.ceil, self.largest, self.assign = number, ceil, largest, assign


_PYTHON = _Language("{}", "-(-({0}) // {1})", "_max({0}, {1})", "    {} = {}")
# BigInt division truncates towards zero: sizes are never negative, so (a + d - 1) / d rounds up.
_JAVASCRIPT = _Language("{}n", "(({0}) + {1} - 1n) / {1}", "_max({0}, {1})", "  const {} = {};")


class _Emitter:
    """Writes expressions as code in which every shared product and atom is computed once."""

    def __init__(self, language: _Language, symbols: Sequence[str]) -> None:
        self.language = language
        self.names: dict[Monomial, str] = {(name,): name for name in symbols}
        self.lines: list[str] = []

    def number(self, value: int) -> str:
        return self.language.number.format(value)

    def expr(self, expr: Expr) -> str:
        parts = []
        for monomial, coefficient in expr.terms.items():
            name = self.monomial(monomial) if monomial else ""
            parts.append(
                self.number(coefficient)
                if not monomial
                else name
                if coefficient == 1
                else f"{self.number(coefficient)} * {name}"
            )
        return " + ".join(parts) or self.number(0)

    def monomial(self, monomial: Monomial) -> str:
        known = self.names.get(monomial)
        if known is None:
            if len(monomial) == 1:
                code = self.atom(monomial[0])
            else:
                code = f"{self.monomial(monomial[:-1])} * {self.monomial(monomial[-1:])}"
            known = self.names[monomial] = f"_{len(self.lines)}"
            self.lines.append(self.language.assign.format(known, code))
        return known

    def atom(self, atom: str) -> str:
        kind = getattr(atom, "kind", "symbol")
        if kind == "symbol":
            raise KeyError(f"no argument for symbol {atom}")
        operands = [self.expr(operand) for operand in atom.operands]  # type: ignore[attr-defined]
        if kind == "ceil":
            return self.language.ceil.format(operands[0], self.number(atom.divisor))  # type: ignore[attr-defined]
        code = operands[0]
        for operand in operands[1:]:
            code = self.language.largest.format(code, operand)
        return code


def compile_python(exprs: Sequence[Expr], symbols: Sequence[str], largest: bool = False) -> Any:
    """A function of the symbols, in that order, that returns the tuple of values, or their `largest`. It
    takes ints or NumPy arrays.

    Arrays are exact only below 2^63: `grid` checks that before it calls. The code is made of numbers and of
    names given here, nothing else.
    """
    emitter = _Emitter(_PYTHON, symbols)
    results = [emitter.expr(expr) for expr in exprs]
    if largest:
        steps = [f"    r = _max(r, {code})" for code in results[1:]]
        body = "\n".join([*emitter.lines, f"    r = {results[0]}", *steps])
        answer = "r"
    else:
        body, answer = "\n".join(emitter.lines), f"({', '.join(results)}{',' if results else ''})"
    source = f"def f({', '.join(symbols)}):\n{body}\n    return {answer}"
    scope: dict[str, Any] = {"_max": _largest}
    exec(source, scope)  # noqa: S102
    return scope["f"]


def javascript(exprs: Sequence[Expr], symbols: Sequence[str]) -> str:
    """A JavaScript arrow function of BigInt arguments, in that order, that returns an array of BigInt: exact
    at any size.
    """
    emitter = _Emitter(_JAVASCRIPT, symbols)
    results = [emitter.expr(expr) for expr in exprs]
    lines = ["  const _max = (a, b) => (a > b ? a : b);", *emitter.lines]
    return f"({', '.join(symbols)}) => {{\n" + "\n".join(lines) + f"\n  return [{', '.join(results)}];\n}}"


def _largest(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return a if a > b else b
    import numpy

    return numpy.maximum(a, b)


def grid(exprs: Sequence[Expr], values: Mapping[str, Any], largest: bool = False) -> list[Any]:
    """The values of expressions (or the `largest` alone) over arrays that broadcast together: int64 where all
    are below 2^62, else objects.

    The bound is the sum of the absolute terms at the largest value of each symbol, which no intermediate
    result can pass.
    """
    import numpy

    arrays = {name: numpy.asarray(value) for name, value in values.items()}
    most = {name: int(array.max()) if array.size else 0 for name, array in arrays.items()}
    bound = max((_bound(expr, most) for expr in exprs), default=0)
    kind: Any = numpy.int64 if bound < 2**62 else object
    arrays = {name: array.astype(kind) for name, array in arrays.items()}
    found = compile_python(exprs, list(arrays), largest)(*arrays.values())
    results = [found] if largest else found
    shape = numpy.broadcast_shapes(*(array.shape for array in arrays.values()))
    return [numpy.broadcast_to(numpy.asarray(result, dtype=kind), shape) for result in results]


def _bound(expr: Expr, largest: Mapping[str, int]) -> int:
    total = 0
    for monomial, coefficient in expr.terms.items():
        size = abs(coefficient)
        for atom in monomial:
            operands = getattr(atom, "operands", ())
            if operands:
                size *= (
                    max(_bound(operand, largest) for operand in operands) // getattr(atom, "divisor", 1) + 1
                )
            else:
                size *= largest[atom]
        total += size
    return total
