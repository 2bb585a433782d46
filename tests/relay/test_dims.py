"""Dimension arithmetic agrees with integer arithmetic, and text round-trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcomp.errors import ParseError
from tcomp.relay.dims import Dim, DimExpr, parse_dim, substitute, symbol, symbols_of

LEAVES = st.one_of(st.integers(1, 9), st.sampled_from(["h", "w", "batch"]).map(symbol))


def combine(children: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    return st.one_of(
        st.tuples(children, children).map(lambda p: p[0] + p[1]),
        st.tuples(children, children).map(lambda p: p[0] * p[1]),
        st.tuples(children, children).map(lambda p: p[0] - p[1]),
        st.tuples(children, st.integers(1, 7)).map(lambda p: p[0] // p[1]),
        st.tuples(children, st.integers(1, 7)).map(lambda p: p[0] % p[1]),
    )


EXPRESSIONS = st.recursive(LEAVES, combine, max_leaves=6)
VALUES = st.fixed_dictionaries({name: st.integers(1, 50) for name in ("h", "w", "batch")})


def python_value(dim: Dim, values: dict[str, int]) -> int:
    return eval(str(dim), {"__builtins__": {}}, dict(values))


@given(EXPRESSIONS, VALUES)
def test_substitution_equals_evaluating_the_text(dim: Dim, values: dict[str, int]) -> None:
    assert substitute(dim, values) == python_value(dim, values)


@given(EXPRESSIONS)
def test_text_round_trips(dim: Dim) -> None:
    assert parse_dim(str(dim)) == dim


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 3), st.integers(1, 4))
def test_convolution_size(size: int, kernel: int, pad: int, stride: int) -> None:
    if size + 2 * pad < kernel:
        return
    out = (symbol("h") + 2 * pad - kernel) // stride + 1
    assert substitute(out, {"h": size}) == (size + 2 * pad - kernel) // stride + 1


def test_equal_meaning_is_equal() -> None:
    h, b = symbol("h"), symbol("batch")
    assert h + b == b + h
    assert (h * b * 4) // (2 * b) == 2 * h
    assert h - h == 0
    assert (4 * h + 6) // 2 == 2 * h + 3
    assert isinstance(h, DimExpr)
    assert symbols_of((h + 1) // 2 * b) == {"h", "batch"}


@pytest.mark.parametrize("text", ["", "h +", "1.5", "f(x)", "h / 2", "'a'"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ParseError, match="is not a dimension"):
        parse_dim(text)
