"""Symbolic sizes: canonical form, and three evaluators that agree (Python int, NumPy, JavaScript through
node).
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.planner.formula.symbolic.codegen import compile_python, grid, javascript
from memplan.planner.formula.symbolic.expr import (
    Expr,
    ceil_div,
    const,
    exceeds,
    maximum,
    minimum,
    power_of_two,
    product,
    round_up,
    symbol,
    total,
)

B, S, R = symbol("B"), symbol("S"), symbol("R")
NAMES = ("B", "S", "R")
VALUES = st.fixed_dictionaries({name: st.integers(1, 10**5) for name in NAMES})


def expressions() -> st.SearchStrategy[Expr]:
    """Sums, products, ceil-divisions and maxima with coefficients that are never negative: what sizes are."""
    leaves = st.one_of(st.sampled_from([B, S, R]), st.integers(0, 10**6).map(const))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
            st.tuples(inner, st.sampled_from([B, S, R])).map(lambda pair: pair[0] * pair[1]),
            st.tuples(inner, st.integers(1, 4096)).map(lambda pair: ceil_div(*pair)),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: maximum(*parts)),
        ),
        max_leaves=6,
    )


def test_canonical_form() -> None:
    assert B * S + 3 == 3 + S * B
    assert (B + 1) * (B + 1) == B * B + 2 * B + 1
    assert B - B == 0 and (B - B).constant == 0
    assert hash(B * S) == hash(S * B)
    assert str(2 * B * S + 1) in ("2*B*S + 1", "1 + 2*B*S")
    assert product((2, B, 3, S)) == 6 * B * S and product(()) == 1
    assert total((B, 2, B)) == 2 * B + 2
    assert (4 * B).symbols() == {"B"} and ceil_div(S + 1, 7).symbols() == {"S"}


def test_ceil_division_folds_only_where_exact() -> None:
    assert ceil_div(8 * S + 16, 8) == S + 2
    assert ceil_div(10, 4) == 3
    assert ceil_div(S, 32).evaluate({"S": 33}) == 2
    assert round_up(S, 32).evaluate({"S": 33}) == 64
    with pytest.raises(ValueError, match="divisor 0"):
        ceil_div(S, 0)


def test_smaller_larger_and_next_power_of_two() -> None:
    sizes = (1, 2, 3, 4, 5, 1023, 1024, 1025, 10**6)
    found = [
        (
            minimum(S, 1024).evaluate({"S": n}),
            exceeds(S, 1024).evaluate({"S": n}),
            power_of_two(S).evaluate({"S": n}),
        )
        for n in sizes
    ]
    assert found == [(min(n, 1024), int(n > 1024), 1 << (n - 1).bit_length()) for n in sizes]


def test_maximum_drops_what_another_covers() -> None:
    assert maximum(B, B + S, 3 * B + S) == 3 * B + S
    assert maximum(4, 7) == 7
    both = maximum(B * 10, S)
    assert both.evaluate({"B": 1, "S": 11}) == 11 and both.evaluate({"B": 2, "S": 11}) == 20


def test_a_symbol_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="S"):
        (B * S).evaluate({"B": 1})


@given(expressions(), VALUES)
def test_python_function_equals_evaluation(expr: Expr, values: dict[str, int]) -> None:
    (found,) = compile_python([expr], NAMES)(*(values[name] for name in NAMES))
    assert found == expr.evaluate(values)


@given(expressions(), st.lists(VALUES, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_numpy_grid_equals_evaluation(expr: Expr, cells: list[dict[str, int]]) -> None:
    (found,) = grid([expr], {name: [cell[name] for cell in cells] for name in NAMES})
    assert [int(value) for value in found] == [expr.evaluate(cell) for cell in cells]


def test_numpy_grid_is_exact_beyond_64_bits() -> None:
    huge = product([10**9, B, S, S])
    (found,) = grid([huge], {"B": [10**4], "S": [10**7]})
    assert int(found[0]) == 10**27


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@given(st.lists(expressions(), min_size=1, max_size=8), st.lists(VALUES, min_size=1, max_size=6))
@settings(max_examples=5, deadline=None)
def test_javascript_equals_evaluation(exprs: list[Expr], cells: list[dict[str, int]]) -> None:
    rows = [[cell[name] for name in NAMES] for cell in cells]
    code = f"const f = {javascript(exprs, NAMES)};\nconst cells = {json.dumps(rows)};\n"
    code += "console.log(JSON.stringify(cells.map(c => f(...c.map(BigInt)).map(String))));"
    answer = subprocess.run(["node", "-e", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(answer.stdout) == [[str(expr.evaluate(cell)) for expr in exprs] for cell in cells]


@given(expressions(), expressions(), VALUES)
def test_covering_means_at_least_as_large(a: Expr, b: Expr, values: dict[str, int]) -> None:
    if a.covers(b):
        assert a.evaluate(values) >= b.evaluate(values)
    assert (a + b).covers(a)
