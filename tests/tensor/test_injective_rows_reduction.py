"""Injective, row and reduction templates: shapes with tails, transposes, fused groups, threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from runnable import WIDEST

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for


def graph_of(shapes: list[tuple[int, ...]], make: Callable[..., Value | tuple[Value, ...]]) -> Graph:
    builder = GraphBuilder()
    results = make(builder, *(builder.input(f"x{i}", s) for i, s in enumerate(shapes)))
    return builder.build(*(results if isinstance(results, tuple) else (results,)))


def check(graph: Graph, template: str, tolerance: float = 2e-5) -> None:
    kernel = Kernel(graph)
    assert template_for(kernel, WIDEST).name == template
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(v.type.static_shape).astype("float32") for v in graph.inputs]
    for got, wanted in zip(build_kernel(kernel, WIDEST)(arrays), evaluate(graph, arrays), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (17,), (5, 33), (2, 3, 7, 7), (3, 40000)])
def test_elementwise_of_any_extent(shape: tuple[int, ...]) -> None:
    check(graph_of([shape, shape], lambda b, x, y: b.op("relu", b.op("add", x, y))), "injective_cpu")


@pytest.mark.parametrize("operand", [(64, 1, 1), (1, 64, 1, 1), (9,), (), (2, 1, 7, 1)])
def test_broadcast_operands(operand: tuple[int, ...]) -> None:
    check(graph_of([(2, 64, 7, 9), operand], lambda b, x, y: b.op("mul", x, y)), "injective_cpu")


def test_two_outputs_and_shared_intermediates() -> None:
    def make(b: GraphBuilder, x: Value, y: Value) -> tuple[Value, ...]:
        total = b.op("add", x, y)
        return total, b.op("mul", b.op("sigmoid", total), total)

    check(graph_of([(5, 37), (37,)], make), "injective_cpu")


def test_long_chains_stay_small() -> None:
    def make(b: GraphBuilder, x: Value) -> Value:
        for _ in range(24):
            x = b.op("mul", x, b.op("sigmoid", x))
        return x

    check(graph_of([(100,)], make), "injective_cpu")


@pytest.mark.parametrize(
    ("shape", "axes"), [((50, 70), (1, 0)), ((2, 20, 5, 33), (0, 2, 3, 1)), ((3, 18, 19), (2, 1, 0))]
)
def test_transposes(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    check(graph_of([shape], lambda b, x: b.op("relu", b.op("transpose", x, axes=axes))), "injective_cpu")


@pytest.mark.parametrize("columns", [3, 16, 37, 130, 1000])
def test_softmax_with_prologue_and_epilogue(columns: int) -> None:
    def make(b: GraphBuilder, x: Value, mask: Value) -> Value:
        return b.op("mul", b.op("softmax", b.op("add", x, mask), axis=2), x)

    check(graph_of([(2, 3, columns), (columns,)], make), "rows_cpu")


def test_layer_norm_after_a_residual() -> None:
    def make(b: GraphBuilder, x: Value, y: Value, scale: Value, bias: Value) -> Value:
        return b.op("gelu", b.op("layer_norm", b.op("add", x, y), scale, bias, axis=2))

    check(graph_of([(4, 40, 192), (4, 40, 192), (192,), (192,)], make), "rows_cpu", 1e-4)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (2,), (1, 2), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("keepdims", [True, False])
def test_reductions_over_any_axes(axes: tuple[int, ...], keepdims: bool) -> None:
    def make(b: GraphBuilder, x: Value) -> Value:
        return b.op("relu", b.op("reduce_mean", b.op("exp", x), axes=axes, keepdims=keepdims))

    check(graph_of([(5, 19, 70)], make), "rows_cpu" if 2 in axes else "reduction_cpu")


def test_softmax_across_channels() -> None:
    check(graph_of([(2, 19, 5, 40)], lambda b, x: b.op("softmax", x, axis=1)), "reduction_cpu")


@pytest.mark.parametrize("vectors", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(2, 3, 7, 9, 8), (2, 3, 2, 3, 16), (1, 2, 5, 1, 24)])
def test_registers_share_rows_that_are_narrow(shape: tuple[int, ...], vectors: int) -> None:
    """Images in blocks of channels: few lanes, and many elements that are added up in each."""
    graph = graph_of([shape], lambda b, x: b.op("reduce_mean", x, axes=(2, 3)))
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (found,) = build_kernel(Kernel(graph), WIDEST, {"vectors": vectors})([data])
    np.testing.assert_allclose(found, evaluate(graph, [data])[0], rtol=1e-5, atol=1e-6)
