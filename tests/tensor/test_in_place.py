"""Outputs in the memory of an operand: which kernels allow it, and the same bits as elsewhere."""

from __future__ import annotations

import random

import numpy as np
import pytest
from runnable import WIDEST

from tcomp.codegen.jit import build_scheduled
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Value
from tcomp.relay.types import Array
from tcomp.tensor.epilogue import epilogue_operands
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule, template_for
from tcomp.tensor.template import Scheduled

RESIDUAL = 2


def with_residual(builder: GraphBuilder, product: Value) -> Kernel:
    """`relu(product + residual)`, the residual being input `RESIDUAL`."""
    residual = builder.input("residual", product.type.static_shape)
    result = builder.op("relu", builder.op("add", product, residual))
    return Kernel(builder.build(result), frozenset({1}))


def conv(channels: int, size: int, outputs: int, taps: int, stride: int = 1) -> Kernel:
    builder, lanes = GraphBuilder(), WIDEST.lanes()
    data = builder.input("data", (1, channels // lanes, size, size, lanes))
    weight = builder.input("weight", (outputs, channels, taps, taps))
    layouts = {"data_layout": f"NCHW{lanes}c", "out_layout": f"NCHW{lanes}c"}
    attrs = {"strides": (stride, stride), "padding": (taps // 2,) * 4}
    return with_residual(builder, builder.op("conv2d", data, weight, **layouts, **attrs))


def matmul(rows: int, depth: int, columns: int) -> Kernel:
    builder = GraphBuilder()
    operands = builder.input("a", (rows, depth)), builder.input("b", (depth, columns))
    return with_residual(builder, builder.op("matmul", *operands))


KERNELS = {
    "1x1": conv(32, 12, 96, 1),
    "3x3": conv(32, 12, 64, 3),
    "3x3/2": conv(64, 10, 32, 3, 2),
    "matmul": matmul(48, 70, 96),
    "matmul of odd sizes": matmul(37, 70, 51),
}
WHOLE = ("1x1", "3x3", "3x3/2", "matmul")
"""Kernels with tiles that do not overlap."""


def run(kernel: Kernel, scheduled: Scheduled, arrays: list[Array], in_place: bool) -> Array:
    runner = build_scheduled(kernel, scheduled, WIDEST)
    arguments = list(runner.prepare(arrays))
    if in_place:
        arguments[-1] = arguments[RESIDUAL]
    runner.run_prepared(arguments)
    return runner.outputs(arguments)[0]


@pytest.mark.parametrize("name", WHOLE)
def test_the_same_bits_over_the_residual(name: str) -> None:
    kernel, generator = KERNELS[name], random.Random(name)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.static_shape).astype(np.float32) for v in kernel.body.inputs]
    space = template_for(kernel, WIDEST).space(kernel, WIDEST)
    configs = [space.default, *(space.random(generator) for _ in range(30))]
    allowed = [s for s in (schedule(kernel, WIDEST, c) for c in configs) if s.in_place]
    assert len(allowed) > 1
    assert all(s.in_place == {RESIDUAL} for s in allowed)
    for scheduled in allowed[:5]:
        apart, over = (run(kernel, scheduled, arrays, in_place) for in_place in (False, True))
        np.testing.assert_array_equal(apart, over)


def test_defaults_of_whole_tiles_allow_it() -> None:
    for name in WHOLE:
        assert schedule(KERNELS[name], WIDEST).in_place == {RESIDUAL}, name


def test_overlapping_tiles_do_not() -> None:
    kernel = KERNELS["matmul of odd sizes"]
    default = template_for(kernel, WIDEST).space(kernel, WIDEST).default
    assert not schedule(kernel, WIDEST, {**default, "tile_rows": 4, "tile_vectors": 1}).in_place


def test_only_operands_of_elementwise_operators_at_the_same_index() -> None:
    builder = GraphBuilder()
    x, other = builder.input("x", (8, 8)), builder.input("other", (8, 8))
    row, turned = builder.input("row", (8,)), builder.input("turned", (8, 8))
    product = builder.op("add", builder.op("matmul", x, other), row)
    moved = builder.op("transpose", turned, axes=(1, 0))
    sums = builder.op("add", builder.op("add", product, moved), x)
    assert not epilogue_operands(Kernel(builder.build(sums)))

    builder = GraphBuilder()
    x, y = builder.input("x", (8, 8)), builder.input("y", (8, 8))
    result = builder.op("mul", builder.op("add", builder.op("matmul", x, x), y), builder.op("sigmoid", y))
    assert epilogue_operands(Kernel(builder.build(result))) == {1}
    assert not epilogue_operands(Kernel(builder.build(result, x)))
