"""Attention whose masks are truth values, some of which hide all keys from a query."""

from __future__ import annotations

from math import inf

import numpy as np

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr
from tcomp.relay.types import Array, numpy_dtype
from tcomp.tensor.kernel import Kernel

KEYS, SIZE = 75, 16
WAYS: dict[str, dict[str, Attr]] = {
    "no numbers": {"hidden": -inf},
    "zeros": {"hidden": -inf, "zero_nan": True},
    "all alike": {"hidden": -65504.0},
    "lowest, causal": {"hidden": float(np.finfo(np.float32).min), "causal": 39},
}


def blind_rows(rows: int) -> list[int]:
    """Queries that see no key."""
    return [0, rows // 4, rows - 1]


def shown_attention(way: str, dtype: str, rows: int = 37) -> Kernel:
    """Two heads, a mask for each."""
    g = GraphBuilder()
    operands = [g.input(name, (2, n, SIZE), dtype) for name, n in (("q", rows), ("k", KEYS), ("v", KEYS))]
    mask = g.input("mask", (2, rows, KEYS), "bool")
    return Kernel(g.build(g.op("attention", *operands, mask, scale=0.4, **WAYS[way])))


def shown_arrays(kernel: Kernel) -> list[Array]:
    rng = np.random.default_rng(0)
    *operands, mask = (v.type for v in kernel.body.inputs)
    shown = rng.random(mask.static_shape) < 0.4
    shown[:, shown.shape[1] // 2, :40] = False  # Nothing of the first tiles.
    shown[:, blind_rows(shown.shape[1])] = False
    rows = [rng.standard_normal(t.static_shape).astype(numpy_dtype(t.dtype)) for t in operands]
    return [*rows, shown]


def assert_shown(found: Array, kernel: Kernel, arrays: list[Array], way: str, tolerance: float) -> None:
    """Blind rows are those of the reference: no numbers, zeros, or means of values."""
    (expected,) = evaluate(kernel.body, arrays)
    blind = expected[:, blind_rows(expected.shape[1])].astype(np.float64)
    assert np.isnan(blind).all() if way == "no numbers" else np.isfinite(blind).all()
    assert (blind == 0).all() == (way == "zeros")
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance
    )


def with_nan(arrays: list[Array]) -> list[Array]:
    """The same with a query that is no number."""
    query, *others = arrays
    query = query.copy()
    query[0, -2, 3] = np.nan
    return [query, *others]
