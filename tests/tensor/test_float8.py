"""Conversions from and to the floats of 8 bits give the bits of ml_dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from runnable import RUNNABLE

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.types import FLOAT8, Array, numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel

SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, 3e38, -3e38, 448, 464, 465], np.float32
)
"""Zeros, infinities, NaN, tiny and huge ones, the largest number, a tie beyond it and just past that."""


def cast(source: str, dtype: str, count: int) -> Kernel:
    builder = GraphBuilder()
    return Kernel(builder.build(builder.op("cast", builder.input("x", (count,), source), dtype=dtype)))


def every(dtype: str) -> Array:
    return np.arange(256, dtype=np.uint8).view(numpy_dtype(dtype))


def about(dtype: str) -> Array:
    """float32 numbers: all of `dtype`, the middles of neighbours, what is next to these, random bits."""
    numbers = every(dtype).astype(np.float32)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    middles = (numbers[1:] + numbers[:-1]) / 2
    beside = [np.nextafter(middles, np.float32(to)) for to in (-np.inf, np.inf)]
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint64).astype(np.uint32)
    return np.concatenate([SPECIAL, numbers, middles, *beside, bits.view(np.float32)])


def assert_same(found: Array, expected: Array) -> None:
    """The same bits, but for those of NaN."""
    assert found.dtype == expected.dtype
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), nan)
    bits = np.dtype(f"uint{8 * found.itemsize}")
    np.testing.assert_array_equal(found[~nan].view(bits), expected[~nan].view(bits))


@pytest.mark.parametrize("target", RUNNABLE)
@pytest.mark.parametrize("dtype", FLOAT8)
def test_every_number_is_widened_exactly(dtype: str, target: str) -> None:
    for wide in ("float32", "float16", "bfloat16"):
        (found,) = build_kernel(cast(dtype, wide, 256), TARGETS[target])([every(dtype)])
        assert_same(found, every(dtype).astype(numpy_dtype(wide)))


@pytest.mark.parametrize("target", RUNNABLE)
@pytest.mark.parametrize("dtype", FLOAT8)
def test_rounding_is_to_nearest_even_and_keeps_nan(dtype: str, target: str) -> None:
    x = about(dtype)
    (found,) = build_kernel(cast("float32", dtype, x.size), TARGETS[target])([x])
    with np.errstate(invalid="ignore", over="ignore"):
        assert_same(found, x.astype(numpy_dtype(dtype)))
