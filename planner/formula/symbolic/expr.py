"""Symbolic sizes: integer expressions in a few positive integers (B micro-batch, S sequence length, R rank,
...).

An expression is a sum of monomials with integer coefficients over *atoms*: a symbol, a ceil-division or a
max. It is immutable and canonical (equal polynomials are equal objects by `==`). A formula is written once,
as expressions; emit.py turns them into code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Union

Monomial = tuple[str, ...]
Sized = Union["Expr", int]


class Atom(str):
    """An indivisible factor of a monomial: a symbol (no operands), `ceil` of operands[0] / divisor, or `max`
    of the operands.
    """

    kind: str
    operands: tuple[Expr, ...]
    divisor: int

    def __new__(
        cls, text: str, kind: str = "symbol", operands: tuple[Expr, ...] = (), divisor: int = 1
    ) -> Atom:
        atom = super().__new__(cls, text)
        atom.kind, atom.operands, atom.divisor = kind, operands, divisor
        return atom


class Expr:
    """A polynomial with integer coefficients over atoms: `terms` maps a sorted tuple of atoms to its
    coefficient, zeros left out.
    """

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
        """The value as a Python int: exact at any size. KeyError for a symbol without a value. Many
        expressions are evaluated over one `AtomValues`, which works each ceil-division out once.
        """
        known = values if isinstance(values, AtomValues) else AtomValues(values)
        total = 0
        for monomial, coefficient in self.terms.items():
            for atom in monomial:
                coefficient *= known[atom]
            total += coefficient
        return total

    def symbols(self) -> set[str]:
        """The names of all symbols that occur, also inside ceil-divisions and maxima."""
        return {str(a) for monomial in self.terms for atom in monomial for a in _leaves(atom)}

    def covers(self, other: Expr) -> bool:
        """True where no coefficient of `other` is larger: then self >= other for all atoms >= 0. False says
        nothing.
        """
        mine = self.terms
        return all(
            coefficient <= mine.get(monomial, 0) for monomial, coefficient in other.terms.items()
        ) and all(coefficient >= 0 for monomial, coefficient in mine.items() if monomial not in other.terms)


class AtomValues(dict[str, int]):
    """The values of symbols, and of each ceil-division and maximum that has been met."""

    def __missing__(self, atom: str) -> int:
        kind = getattr(atom, "kind", "symbol")
        if kind == "symbol":
            raise KeyError(atom)
        operands = [operand.evaluate(self) for operand in atom.operands]  # type: ignore[attr-defined]
        value: int = max(operands) if kind == "max" else -(-operands[0] // atom.divisor)  # type: ignore[attr-defined]
        self[atom] = value
        return value


def symbol(name: str) -> Expr:
    """A symbol that stands for a positive integer."""
    return Expr({(Atom(name),): 1})


def const(value: int) -> Expr:
    """The expression of one integer."""
    return Expr({(): value} if value else {})


def as_expr(value: Sized) -> Expr:
    """An expression, from an expression or an integer."""
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
    """ceil(value / divisor) for a positive divisor; folded where it divides every coefficient, or where value
    is a number.
    """
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


def exceeds(value: Sized, bound: Sized) -> Expr:
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
