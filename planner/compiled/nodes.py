"""Sizes over a grid of traced points, and their values elsewhere: exact polynomials in B and S.

A tensor's size is a product of dimensions that are constants, B, S or products of them, so that it is linear
in B and at most quadratic in S. With as many traced points as such a polynomial has coefficients, its value
at any other (B, S) is a weighted sum of its values at those points (Lagrange's form), in exact fractions. A
size that is something else gives a value that is no whole number, or misses the point that checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

Point = tuple[int, int]  # micro-batch, sequence length


class NotPolynomialError(ValueError):
    """A size is no polynomial of the degree that the grid has points for."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The traced points: every pair of `batches` and `sequences`; one value of either holds it fixed."""

    batches: tuple[int, ...]
    sequences: tuple[int, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """Micro-batch and sequence length of each node, in the order of its weights."""
        return tuple(product(self.batches, self.sequences))

    def weights(self, point: Point) -> tuple[Fraction, ...]:
        """By how much each node's value counts at a point."""
        along = (_lagrange(self.batches, point[0]), _lagrange(self.sequences, point[1]))
        return tuple(a * b for a, b in product(*along))


def _lagrange(nodes: Sequence[int], at: int) -> list[Fraction]:
    found = []
    for i, node in enumerate(nodes):
        weight = Fraction(1)
        for j, other in enumerate(nodes):
            if j != i:
                weight *= Fraction(at - other, node - other)
        found.append(weight)
    return found


def value(at_nodes: Sequence[int], weights: Sequence[Fraction]) -> int:
    """The polynomial's value. NotPolynomialError where it is no whole number, or negative."""
    first = at_nodes[0]
    if all(each == first for each in at_nodes):
        return first
    total = sum(weight * each for weight, each in zip(weights, at_nodes, strict=True))
    if total != int(total) or total < 0:
        raise NotPolynomialError(f"{total} from {tuple(at_nodes)}")
    return int(total)
