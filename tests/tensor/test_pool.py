"""Pooling kernels against the operators' own reference: borders, tails, dilation, layouts, epilogues."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from runnable import WIDEST

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for

WINDOWS: list[dict[str, Attr]] = [
    {"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1)},
    {"kernel": (3, 3), "strides": (2, 2), "padding": (0, 0, 0, 0), "ceil_mode": True},
    {"kernel": (2, 3), "strides": (1, 2), "padding": (1, 2, 0, 1), "dilation": (2, 2)},
    {"kernel": (5, 5), "strides": (3, 3), "padding": (2, 2, 2, 2), "ceil_mode": True},
]
SHAPES = [((2, 3, 21, 35), "NCHW"), ((2, 2, 10, 9), "NCHW"), ((1, 2, 13, 19, 16), "NCHW16c")]


def pool(
    op: str, shape: tuple[int, ...], attrs: Mapping[str, Attr], layout: str = "NCHW", epilogue: bool = False
) -> Kernel:
    builder = GraphBuilder()
    every: dict[str, Attr] = {**attrs, "data_layout": layout}
    result = builder.op(op, builder.input("x", shape, "float32"), name="", **every)
    if epilogue:
        residual = builder.input("residual", result.type.static_shape, "float32")
        result = builder.op("relu", builder.op("add", result, residual))
    return Kernel(builder.build(result), frozenset())


def assert_matches(kernel: Kernel, tile: int | None = None) -> None:
    assert template_for(kernel, WIDEST).name == "pool_cpu"
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(v.type.static_shape).astype(v.dtype) - 1 for v in kernel.body.inputs]
    config = None if tile is None else {"tile": tile}
    (found,) = build_kernel(kernel, WIDEST, config)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "layout"), SHAPES)
@pytest.mark.parametrize("attrs", WINDOWS)
@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_matches_reference(op: str, attrs: dict[str, Attr], shape: tuple[int, ...], layout: str) -> None:
    assert_matches(pool(op, shape, attrs, layout, epilogue=True))


@pytest.mark.parametrize("tile", [1, 2, 8, 16])
@pytest.mark.parametrize(("shape", "layout"), SHAPES)
def test_every_tile_matches(shape: tuple[int, ...], layout: str, tile: int) -> None:
    assert_matches(pool("avg_pool2d", shape, {**WINDOWS[3], "count_include_pad": True}, layout), tile)


@pytest.mark.parametrize("op", ["max_pool3d", "avg_pool3d"])
def test_three_axes(op: str) -> None:
    assert_matches(
        pool(
            op,
            (1, 2, 7, 8, 20),
            {"kernel": (3, 2, 3), "strides": (2, 1, 1), "padding": (1, 0, 1, 1, 1, 1)},
        )
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("shape", "layout"), SHAPES)
def test_narrow_elements_that_are_widened(shape: tuple[int, ...], layout: str, dtype: str) -> None:
    builder = GraphBuilder()
    pooled = builder.op("max_pool2d", builder.input("x", shape, dtype), **WINDOWS[0], data_layout=layout)
    kernel = Kernel(builder.build(builder.op("cast", pooled, dtype="float32")))
    x = np.random.default_rng(0).standard_normal(shape).astype(numpy_dtype(dtype))
    (found,), (expected,) = build_kernel(kernel, WIDEST)([x]), evaluate(kernel.body, [x])
    np.testing.assert_array_equal(found, expected)


def test_window_of_padding_alone() -> None:
    """A window that holds no element of the input is the lowest value."""
    assert_matches(pool("max_pool1d", (1, 1, 3), {"kernel": (2,), "strides": (2,), "padding": (2, 2)}))


def test_results_stay_in_registers() -> None:
    kernel = pool("max_pool2d", (1, 4, 56, 56, 16), WINDOWS[0], "NCHW16c")
    lines = build_kernel(kernel, TARGETS["x86-64-v4"]).source("asm").splitlines()
    assert sum("vmaxps" in line and "zmm" in line for line in lines) >= 12
    assert not [line for line in lines if "zmm" in line and "rsp" in line and "vmov" in line]


def test_rows_of_stride_two_are_read_in_vectors() -> None:
    kernel = pool("max_pool2d", (1, 4, 56, 56), {"kernel": (2, 2), "strides": (2, 2)})
    assert_matches(kernel)
    lines = build_kernel(kernel, TARGETS["x86-64-v4"]).source("asm").splitlines()
    assert [line for line in lines if "vpermt2ps" in line and "zmm" in line]
    assert not [line for line in lines if "vinsertps" in line or "vgather" in line]
