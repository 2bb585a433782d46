"""NaN on CPUs: what is NaN where an element is, and what is left of it where that costs time."""

from __future__ import annotations

import numpy as np
import pytest
from runnable import RUNNABLE

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr
from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel

DTYPES = ("float32", "float16", "bfloat16", "float64")


def one(op: str, shapes: list[tuple[int, ...]], dtype: str = "float32", **attrs: Attr) -> Kernel:
    g = GraphBuilder(op)
    return Kernel(g.build(g.op(op, *(g.input(f"x{i}", s, dtype) for i, s in enumerate(shapes)), **attrs)))


def assert_keeps_nan(kernel: Kernel, arrays: list[Array], target: str) -> None:
    (expected,) = evaluate(kernel.body, arrays)
    (found,) = build_kernel(kernel, TARGETS[target])(arrays)
    assert np.isnan(expected.astype(np.float64)).any() or expected.dtype == np.int64
    np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))


@pytest.mark.parametrize("target", RUNNABLE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("op", ["reduce_max", "reduce_min", "argmax", "argmin"])
def test_reductions_find_nan(op: str, axis: int, dtype: str, target: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((37, 41)).astype(numpy_dtype(dtype))
    x[rng.integers(37, size=20), rng.integers(41, size=20)] = np.nan
    attrs: dict[str, Attr] = {"axis": axis} if op.startswith("arg") else {"axes": (axis,)}
    assert_keeps_nan(one(op, [x.shape], dtype, **attrs), [x], target)


@pytest.mark.parametrize("target", RUNNABLE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["maximum", "minimum"])
def test_the_larger_of_two_is_nan_where_one_is(op: str, dtype: str, target: str) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 3, 37)).astype(numpy_dtype(dtype))
    x[0, ::3] = y[1, ::3] = x[2, 7] = y[2, 7] = np.nan
    assert_keeps_nan(one(op, [x.shape, y.shape], dtype), [x, y], target)


@pytest.mark.parametrize("target", RUNNABLE)
def test_softmax_of_a_row_with_nan_is_nan(target: str) -> None:
    x = np.linspace(-3, 3, 4 * 40, dtype=np.float32).reshape(4, 40)
    x[[1, 3], [0, 20]] = np.nan
    (found,) = build_kernel(one("softmax", [x.shape], axis=1), TARGETS[target])([x])
    np.testing.assert_array_equal(
        np.isnan(found), np.isnan(x).any(axis=1, keepdims=True) | np.zeros_like(x, bool)
    )


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
def test_bounds_cost_one_instruction_each(target: str) -> None:
    source = build_kernel(one("clip", [(64, 256)], min=-1.0, max=6.0), TARGETS[target]).source()
    operations = [line.split()[0] for line in source.splitlines() if line.strip().startswith("v")]
    assert operations.count("vmaxps") == operations.count("vminps") > 0
    assert not [name for name in operations if name.startswith(("vor", "vpor", "vcmp", "vblend"))]


@pytest.mark.parametrize("target", RUNNABLE)
def test_pooling_keeps_nan_of_the_last_element_of_a_window(target: str) -> None:
    """As ONNX Runtime does; the others of a window would cost more than half of its time again."""
    x = np.zeros((1, 2, 6, 6, 16), np.float32)
    x[0, 1, 3, 3, 5] = np.nan
    kernel = one("max_pool2d", [x.shape], kernel=(2, 2), strides=(2, 2), data_layout="NCHW16c")
    (found,) = build_kernel(kernel, TARGETS[target])([x])
    np.testing.assert_array_equal(np.argwhere(np.isnan(found)), [[0, 1, 1, 1, 5]])
