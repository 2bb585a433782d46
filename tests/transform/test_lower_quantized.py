"""Products of quantized operands: which become products of int8, and that they compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from quantized_graphs import RNG, convolutions, dequantize, quantize, weights

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import FLOAT8, Array, numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.transform.lower_quantized import LowerQuantized
from tcomp.transform.pipeline import optimize


def products(graph: Graph) -> list[str]:
    """Element types that the contractions of `graph` multiply."""
    return [n.inputs[0].dtype for n in graph.nodes if n.op in ("conv2d", "matmul")]


def assert_within_a_step(graph: Graph, lowered: Graph, arrays: list[Array]) -> None:
    (expected,), (found,) = evaluate(graph, arrays), evaluate(lowered, arrays)
    assert found.dtype == expected.dtype
    steps = np.abs(found.astype(np.int32) - expected.astype(np.int32))
    assert steps.max() <= 1
    assert steps.mean() < 0.01
    assert expected.std() > 10


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_convolutions(dtype: str) -> None:
    graph = convolutions(dtype)
    lowered = LowerQuantized(integer_products=True).run(graph)
    assert products(lowered) == ["int8", "int8"]
    assert not any(n.op == "dequantize" for n in lowered.nodes)
    x = RNG.standard_normal((1, 8, 9, 9)).astype(np.float32)
    assert_within_a_step(graph, lowered, [x])


def test_numbers_between_kernels_are_int8() -> None:
    optimized = optimize(convolutions("uint8"), TARGETS["cortex-a76"])
    kernels = [k for k in (Kernel.of(n) for n in optimized.nodes if n.op == "fused") if k.anchor]
    assert [k.body.inputs[0].dtype for k in kernels] == ["int8", "int8"]
    residual = [v for v in kernels[-1].body.inputs if v.type.size == 12 * 9 * 9]
    assert [v.dtype for v in residual] == ["int8"]


@pytest.mark.parametrize("transpose_b", [False, True])
def test_matrices(transpose_b: bool) -> None:
    g = GraphBuilder()
    x = g.input("x", (5, 24), "uint8")
    w = weights(g, 16, 24) if transpose_b else weights(g, 24, 16, axis=1)
    y = g.op("matmul", dequantize(g, x, 0.05, 131), w, transpose_b=transpose_b)
    graph = g.build(quantize(g, y, 0.03, 3, "int8"))
    lowered = LowerQuantized(integer_products=True).run(graph)
    assert products(lowered) == ["int8"]
    assert_within_a_step(graph, lowered, [RNG.integers(0, 256, (5, 24)).astype(np.uint8)])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("per_row", [False, True])
def test_integers_with_a_zero_point_of_run_time_are_exact(dtype: str, per_row: bool) -> None:
    g = GraphBuilder()
    x, zero = g.input("x", (5, 24), dtype), g.input("zero", (5, 1) if per_row else (), dtype)
    centred = g.op("sub", g.op("cast", x, dtype="int32"), g.op("cast", zero, dtype="int32"))
    w = RNG.integers(-128, 128, (24, 16)).astype(np.int32)
    graph = g.build(g.op("matmul", centred, g.constant(w)))
    lowered = LowerQuantized(integer_products=True).run(graph)
    assert products(lowered) == ["int8"]
    limits = np.iinfo(dtype)
    arrays = [
        np.asarray(RNG.integers(limits.min, limits.max + 1, v.type.static_shape)).astype(numpy_dtype(dtype))
        for v in graph.inputs
    ]
    np.testing.assert_array_equal(evaluate(lowered, arrays)[0], evaluate(graph, arrays)[0])


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (8, 3, 3, 3)])
def test_depthwise_and_first_convolutions(shape: tuple[int, ...]) -> None:
    g = GraphBuilder()
    groups = shape[0] if shape[1] == 1 else 1
    x = quantize(g, g.input("x", (1, shape[1] * groups, 9, 9)), 0.03, 110, "uint8")
    y = g.op("conv2d", dequantize(g, x, 0.03, 110), weights(g, *shape), padding=(1,) * 4, groups=groups)
    graph = g.build(quantize(g, y, 0.02, 120, "uint8"))
    lowered = LowerQuantized(integer_products=True).run(graph)
    assert products(lowered) == ["int8"]
    assert_within_a_step(
        graph, lowered, [RNG.standard_normal((1, shape[1] * groups, 9, 9)).astype(np.float32)]
    )


def kept(case: str) -> Graph:
    g = GraphBuilder()
    x = g.input("x", (1, 8, 6, 6), "int8")
    data = dequantize(g, x, 0.1, 5)
    if case == "apart":
        return g.build(g.op("conv2d", data, weights(g, 8, 1, 3, 3), groups=8, dilation=(2, 2)))
    if case == "two inputs":
        return g.build(g.op("conv2d", data, weights(g, 8, 2, 3, 3), groups=4))
    if case == "scales of inputs":
        return g.build(g.op("conv2d", data, weights(g, 8, 8, 1, 1, axis=1)))
    return g.build(g.op("conv2d", data, weights(g, 8, 8, 1, 1, zero=100, dtype="uint8")))


@pytest.mark.parametrize("case", ["apart", "two inputs", "scales of inputs", "weights beyond int8"])
def test_others_stay_in_float32(case: str) -> None:
    graph = kept(case)
    lowered = LowerQuantized(integer_products=True).run(graph)
    assert products(lowered) == ["float32"]
    x = RNG.integers(-128, 128, (1, 8, 6, 6)).astype(np.int8)
    np.testing.assert_allclose(evaluate(lowered, [x])[0], evaluate(graph, [x])[0], rtol=1e-6, atol=1e-6)


def test_cores_without_the_instruction_multiply_floats() -> None:
    fused = [n for n in optimize(convolutions("int8"), TARGETS["cortex-a72"]).nodes if n.op == "fused"]
    bodies = [n.attrs["body"] for n in fused]
    assert {d for body in bodies if isinstance(body, Graph) for d in products(body)} == {"float32"}


def float8_matrices(dtype: str, other: str, per_column: bool = True, zero: int = 0) -> Graph:
    g = GraphBuilder()
    x = g.op("cast", g.op("mul", g.input("x", (5, 24)), g.constant(np.float32(8))), dtype=dtype)
    scale = RNG.uniform(0.5, 1.5, (1, 16) if per_column else (24, 1)).astype(np.float32)
    w = RNG.uniform(-9, 9, (24, 16)).astype(numpy_dtype(other))
    w_value = g.op("dequantize", g.constant(w), g.constant(scale), g.constant(0, other))
    return g.build(g.op("matmul", dequantize(g, x, 0.125, zero), w_value))


@pytest.mark.parametrize("dtype", FLOAT8)
def test_matrices_of_float8(dtype: str) -> None:
    graph = float8_matrices(dtype, dtype)
    lowered = LowerQuantized(float8_products=True).run(graph)
    assert products(lowered) == [dtype]
    x = RNG.standard_normal((5, 24)).astype(np.float32)
    np.testing.assert_allclose(evaluate(lowered, [x])[0], evaluate(graph, [x])[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_scales_stay_behind_products_of_float8(dtype: str) -> None:
    graph = float8_matrices(dtype, dtype)
    (expected,) = evaluate(graph, [np.ones((5, 24), np.float32)])
    optimized = optimize(graph, TARGETS["cuda:sm_89"])
    np.testing.assert_allclose(evaluate(optimized, [np.ones((5, 24), np.float32)])[0], expected, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_of_float8(groups: int) -> None:
    """In groups they are products of float32: no tensor core takes these."""
    g = GraphBuilder()
    x = g.op("cast", g.input("x", (1, 8, 5, 5)), dtype="float8_e4m3fn")
    w = RNG.uniform(-9, 9, (12, 8 // groups, 3, 3)).astype(numpy_dtype("float8_e4m3fn"))
    scale = RNG.uniform(0.5, 1.5, (12, 1, 1, 1)).astype(np.float32)
    weight = g.op("dequantize", g.constant(w), g.constant(scale), g.constant(0, "float8_e4m3fn"))
    graph = g.build(g.op("conv2d", dequantize(g, x, 0.125, 0), weight, padding=(1,) * 4, groups=groups))
    lowered = LowerQuantized(float8_products=True).run(graph)
    assert products(lowered) == ["float8_e4m3fn" if groups == 1 else "float32"]
    data = RNG.standard_normal((1, 8, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(evaluate(lowered, [data])[0], evaluate(graph, [data])[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("target", "expected"), [("cuda:sm_75", "float32"), ("cuda:sm_80", "int8"), ("cuda:sm_90a", "int8")]
)
def test_int8_is_multiplied_on_tensor_cores(target: str, expected: str) -> None:
    optimized = optimize(convolutions("uint8"), TARGETS[target])
    kernels = [k for k in (Kernel.of(n) for n in optimized.nodes if n.op == "fused") if k.anchor]
    assert {k.anchor.inputs[0].dtype for k in kernels if k.anchor is not None} == {expected}


@pytest.mark.parametrize(
    "graph",
    [
        float8_matrices("float8_e4m3fn", "float8_e5m2"),
        float8_matrices("float8_e4m3fn", "float8_e4m3fn", per_column=False),
        float8_matrices("float8_e4m3fn", "float8_e4m3fn", zero=1),
    ],
    ids=["two formats", "scales along the depth", "a zero point"],
)
def test_other_matrices_of_float8_are_float32_products(graph: Graph) -> None:
    assert products(LowerQuantized(float8_products=True).run(graph)) == ["float32"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("cuda:sm_80", "float32"), ("cuda:sm_89", "float8_e4m3fn"), ("cuda:sm_90a", "float8_e4m3fn"),
        ("x86-64-v3", "float32"),
    ],
)  # fmt: skip
def test_float8_is_multiplied_where_there_are_instructions(target: str, expected: str) -> None:
    graph = float8_matrices("float8_e4m3fn", "float8_e4m3fn")
    optimized = optimize(graph, TARGETS[target])
    kernels = [k for k in (Kernel.of(n) for n in optimized.nodes if n.op == "fused") if k.anchor]
    assert [k.anchor.inputs[0].dtype for k in kernels if k.anchor is not None] == [expected]
