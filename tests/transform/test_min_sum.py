"""Variable elimination finds the least sum of random tables, or says which variables it had to fix."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcomp.transform.min_sum import Factor, minimize, total


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[Factor]]:
    """Up to six variables of up to three labels; tables over up to three of them, some choices forbidden."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    costs = st.one_of(st.integers(0, 20).map(float), st.just(inf))
    factors: list[Factor] = []
    for _ in range(draw(st.integers(0, 9))):
        variables = st.integers(0, len(sizes) - 1)
        scope = tuple(draw(st.lists(variables, max_size=3, unique=True)))
        shape = [sizes[v] for v in scope]
        entries = int(np.prod(shape))
        table = draw(st.lists(costs, min_size=entries, max_size=entries))
        factors.append(Factor(scope, np.array(table).reshape(shape)))
    return sizes, factors


def least(sizes: list[int], factors: list[Factor]) -> float:
    return min(total(factors, labels) for labels in product(*(range(size) for size in sizes)))


@settings(max_examples=300, deadline=None)
@given(problems())
def test_elimination_finds_the_optimum(problem: tuple[list[int], list[Factor]]) -> None:
    sizes, factors = problem
    solution = minimize(sizes, factors)
    assert not solution.fixed
    assert all(0 <= label < size for label, size in zip(solution.labels, sizes, strict=True))
    assert solution.cost == total(factors, solution.labels) == least(sizes, factors)


def entangled(count: int) -> tuple[list[int], list[Factor]]:
    """Every pair of `count` variables has a table of its own."""
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a in range(count) for b in range(a)]
    return [3] * count, [Factor(pair, rng.integers(0, 50, (3, 3)).astype(float)) for pair in pairs]


def test_large_tables_are_avoided_and_that_is_said() -> None:
    sizes, factors = entangled(8)
    exact, rough = minimize(sizes, factors), minimize(sizes, factors, most_entries=27)
    assert exact.cost == least(sizes, factors)
    assert rough.fixed
    assert exact.cost <= rough.cost == total(factors, rough.labels)
    assert minimize(sizes, factors, most_entries=27) == rough
    for variable, label in product(range(len(sizes)), range(3)):
        moved = [*rough.labels[:variable], label, *rough.labels[variable + 1 :]]
        assert total(factors, moved) >= rough.cost


@pytest.mark.parametrize("count", [1, 200])
def test_chains_need_small_tables(count: int) -> None:
    rng = np.random.default_rng(1)
    factors = [Factor((v, v + 1), rng.random((2, 2))) for v in range(count)]
    assert not minimize([2] * (count + 1), factors, most_entries=4).fixed
