"""Symbolic sizes: integer expressions in a few positive integers (B micro-batch, S sequence length, R rank, ...).

An expression is a sum of monomials with integer coefficients over *atoms*: a symbol, a ceil-division or a max. It is immutable and
canonical (equal polynomials are equal objects by `==`), and it is evaluated in three ways that agree exactly: as a Python int, over NumPy
int64 arrays (object arrays where a value could pass 2^63), and as JavaScript on BigInt. A formula is written once, as expressions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Union

Monomial = tuple[str, ...]
Sized = Union["Expr", int]


class Atom(str):
    """An indivisible factor of a monomial: a symbol (no operands), `ceil` of operands[0] / divisor, or `max` of the operands."""

    kind: str
    operands: tuple[Expr, ...]
    divisor: int

    def __new__(cls, text: str, kind: str = "symbol", operands: tuple[Expr, ...] = (), divisor: int = 1) -> Atom:
        atom = super().__new__(cls, text)
        atom.kind, atom.operands, atom.divisor = kind, operands, divisor
        return atom


class Expr:
    """A polynomial with integer coefficients over atoms: `terms` maps a sorted tuple of atoms to its coefficient, zeros left out."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms = terms
        self._hash: int | None = None

    def __add__(self, other: Sized) -> Expr:
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            total = terms.get(monomial, 0) + coefficient
            if total:
                terms[monomial] = total
            else:
                terms.pop(monomial, None)
        return Expr(terms)

    __radd__ = __add__

    def __mul__(self, other: Sized) -> Expr:
        if isinstance(other, int):
            return Expr({monomial: c * other for monomial, c in self.terms.items()} if other else {})
        product: dict[Monomial, int] = {}
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                monomial = tuple(sorted(left + right))
                product[monomial] = product.get(monomial, 0) + a * b
        return Expr({monomial: c for monomial, c in product.items() if c})

    __rmul__ = __mul__

    def __neg__(self) -> Expr:
        return self * -1

    def __sub__(self, other: Sized) -> Expr:
        return self + (other * -1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Expr, int)):
            return NotImplemented
        return self.terms == _terms(other)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    def __str__(self) -> str:
        return " + ".join(_product(c, m, "*") for m, c in self.terms.items()) or "0"

    __repr__ = __str__

    @property
    def constant(self) -> int | None:
        """The value where no symbol is left, else None."""
        if not self.terms:
            return 0
        return self.terms.get(()) if len(self.terms) == 1 else None

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The value as a Python int: exact at any size. KeyError for a symbol without a value."""
        total = 0
        for monomial, coefficient in self.terms.items():
            for atom in monomial:
                coefficient *= _atom_value(atom, values)
            total += coefficient
        return total

    def symbols(self) -> set[str]:
        """The names of all symbols that occur, also inside ceil-divisions and maxima."""
        return {str(a) for monomial in self.terms for atom in monomial for a in _leaves(atom)}

    def covers(self, other: Expr) -> bool:
        """True where no coefficient of `other` is larger: then self >= other for all atoms >= 0. False says nothing."""
        mine = self.terms
        return all(coefficient <= mine.get(monomial, 0) for monomial, coefficient in other.terms.items()) and all(
            coefficient >= 0 for monomial, coefficient in mine.items() if monomial not in other.terms
        )


def symbol(name: str) -> Expr:
    """A symbol that stands for a positive integer."""
    return Expr({(Atom(name),): 1})


def const(value: int) -> Expr:
    return Expr({(): value} if value else {})


def as_expr(value: Sized) -> Expr:
    return value if isinstance(value, Expr) else const(value)


def product(factors: Iterable[Sized]) -> Expr:
    """The product of ints and expressions; the empty product is 1."""
    number, result = 1, const(1)
    for factor in factors:
        if isinstance(factor, int):
            number *= factor
        else:
            result = result * factor
    return result * number


def total(parts: Iterable[Sized]) -> Expr:
    """The sum of ints and expressions."""
    terms: dict[Monomial, int] = {}
    for part in parts:
        for monomial, coefficient in _terms(part).items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
    return Expr({monomial: c for monomial, c in terms.items() if c})


def ceil_div(value: Sized, divisor: int) -> Expr:
    """ceil(value / divisor) for a positive divisor; folded where it divides every coefficient, or where value is a number."""
    if divisor < 1:
        raise ValueError(f"divisor {divisor}: expected a positive integer")
    expr = as_expr(value)
    if expr.constant is not None:
        return const(-(-expr.constant // divisor))
    if all(c % divisor == 0 for c in expr.terms.values()):
        return Expr({m: c // divisor for m, c in expr.terms.items()})
    return Expr({(Atom(f"ceil(({expr})/{divisor})", "ceil", (expr,), divisor),): 1})


def round_up(value: Sized, multiple: int) -> Expr:
    """The smallest multiple that is at least `value`."""
    return ceil_div(value, multiple) * multiple


def maximum(*values: Sized) -> Expr:
    """The largest of the values; those that another one covers are left out."""
    exprs: list[Expr] = []
    for value in map(as_expr, values):
        if any(kept.covers(value) for kept in exprs):
            continue
        exprs = [kept for kept in exprs if not value.covers(kept)] + [value]
    numbers = [e.constant for e in exprs if e.constant is not None]
    if len(numbers) == len(exprs):
        return const(max(numbers))
    if len(exprs) == 1:
        return exprs[0]
    exprs.sort(key=str)
    return Expr({(Atom(f"max({', '.join(map(str, exprs))})", "max", tuple(exprs)),): 1})


def minimum(a: Sized, b: Sized) -> Expr:
    """The smaller of two values."""
    return as_expr(a) + b - maximum(a, b)


def exceeds(value: Sized, bound: int) -> Expr:
    """1 where value > bound, else 0, for values below 2^60."""
    return ceil_div(maximum(value, bound) - bound, 2**60)


def power_of_two(value: Sized, most: int = 2**24) -> Expr:
    """The smallest power of two that is at least a positive `value`, for values up to `most`."""
    return total((1, *(exceeds(value, 2**k) * 2**k for k in range(most.bit_length() - 1))))


def _terms(value: Sized) -> Mapping[Monomial, int]:
    return value.terms if isinstance(value, Expr) else ({(): value} if value else {})


def _product(coefficient: int, monomial: Monomial, times: str) -> str:
    factors = [*([str(coefficient)] if coefficient != 1 or not monomial else []), *monomial]
    return times.join(factors)


def _leaves(atom: str) -> Iterator[str]:
    operands = getattr(atom, "operands", ())
    if not operands:
        yield str(atom)
    for operand in operands:
        yield from operand.symbols()


def _atom_value(atom: str, values: Mapping[str, int]) -> int:
    kind = getattr(atom, "kind", "symbol")
    if kind == "symbol":
        return values[atom]
    operands: list[int] = [operand.evaluate(values) for operand in atom.operands]  # type: ignore[attr-defined]
    if kind == "max":
        return max(operands)
    divisor: int = atom.divisor  # type: ignore[attr-defined]
    return -(-operands[0] // divisor)


# ---- emitting code: one walk, two languages ------------------------------------------------------------------------------------------


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
            parts.append(self.number(coefficient) if not monomial else name if coefficient == 1 else f"{self.number(coefficient)} * {name}")
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
    """A function of the symbols, in that order, that returns the tuple of values, or their `largest`. It takes ints or NumPy arrays.

    Arrays are exact only below 2^63: `grid` checks that before it calls. The code is made of numbers and of names given here, nothing else.
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
    """A JavaScript arrow function of BigInt arguments, in that order, that returns an array of BigInt: exact at any size."""
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
    """The values of expressions (or the `largest` alone) over arrays that broadcast together: int64 where all are below 2^62, else objects.

    The bound is the sum of the absolute terms at the largest value of each symbol, which no intermediate result can pass.
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
            size *= max(_bound(operand, largest) for operand in operands) // atom.divisor + 1 if operands else largest[atom]  # type: ignore[attr-defined]
        total += size
    return total
