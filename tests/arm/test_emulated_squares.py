"""Products of two rows and two columns at a time, `smmla` and `bfmmla`: their numbers under qemu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_emulated import run, tools

from tcomp.api import optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Graph, Value
from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.parse import parse_target
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel

WIDE = {"int8": "int32", "bfloat16": "float32"}
SQUARES = {"int8": "smmla", "bfloat16": "bfmmla"}
BLOCK = {"int8": 8, "bfloat16": 4}
"""Channels of a block: a group."""
MATRICES = (
    ((2, 8), (8, 4)),
    ((3, 20), (20, 12)),
    ((7, 33), (33, 28)),
    ((31, 64), (64, 100)),
    ((2, 3, 24), (24, 16)),
    ((4, 9216), (9216, 12)),
)
"""Operands: whole and ragged groups, odd counts of rows, a merged batch, passes over a long depth."""
CONVOLUTIONS: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Attr]], ...] = (
    ((8, 9, 9), (16, 8, 3, 3), {"padding": (1,) * 4}),
    ((16, 7, 7), (24, 16, 1, 1), {}),
    ((16, 6, 5), (12, 16, 3, 3), {"padding": (2, 0, 0, 2), "dilation": (1, 2), "strides": (2, 1)}),
    ((32, 4, 8), (16, 16, 3, 3), {"groups": 2}),
    ((6, 5, 6), (10, 6, 3, 2), {"padding": (1, 1, 1, 1)}),
)
"""Channels and size, weights, and what else there is."""


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Small integers, whose sums of products are exact in float32."""
    most = 8 if dtype == "bfloat16" else 127
    return rng.integers(-most, most + 1, shape).astype(numpy_dtype(dtype))


def matrices(dtype: str) -> Graph:
    g, rng = GraphBuilder("matrices"), np.random.default_rng(0)
    results = [
        g.op(
            "matmul",
            g.input(f"x{i}", left, dtype),
            g.constant(numbers(rng, right, dtype)),
            out_dtype=WIDE[dtype],
        )
        for i, (left, right) in enumerate(MATRICES)
    ]
    turned = g.op("matmul", g.input("x", (40, 6), dtype), g.constant(numbers(rng, (20, 40), dtype)),
                  transpose_a=True, transpose_b=True, out_dtype=WIDE[dtype])  # fmt: skip
    return g.build(*results, turned)


def convolutions(dtype: str) -> Graph:
    g, rng, block = GraphBuilder("convolutions"), np.random.default_rng(0), BLOCK[dtype]
    layouts = {f"{end}_layout": f"NCHW{block}c" for end in ("data", "out")}
    results: list[Value] = []
    for i, ((channels, *size), weights, attrs) in enumerate(CONVOLUTIONS):
        x = g.input(f"x{i}", (1, -(-channels // block), *size, block), dtype)
        filters = g.constant(numbers(rng, weights, dtype))
        pad = {"pad_value": 5} if dtype == "int8" and "padding" in attrs else {}
        results.append(g.op("conv2d", x, filters, out_dtype=WIDE[dtype], **layouts, **attrs, **pad))
    return g.build(*results)


def assert_exact(graph: Graph, target: Target, folder: Path) -> None:
    """The library computes what the reference does, to the bit."""
    tools(target)
    rng = np.random.default_rng(1)
    arrays = [numbers(rng, v.type.static_shape, v.dtype) for v in graph.inputs]
    compile_graph(optimize(graph, target), target, folder / "products.so")
    result = run(folder / "products.so", target, arrays, folder)
    assert (result.returncode, result.stderr) == (0, b"")
    begin = 0
    for expected in evaluate(graph, arrays):
        found = np.frombuffer(result.stdout, expected.dtype, expected.size, begin).reshape(expected.shape)
        begin += found.nbytes
        np.testing.assert_array_equal(found, expected)
    assert begin == len(result.stdout)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_matrices(dtype: str, tmp_path: Path) -> None:
    assert_exact(matrices(dtype), parse_target("neoverse-v1"), tmp_path)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_convolutions(dtype: str, tmp_path: Path) -> None:
    assert_exact(convolutions(dtype), parse_target("cortex-x2"), tmp_path)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_which_products_are_squares(dtype: str) -> None:
    """All but single rows, columns without whole squares, pixels apart, and products of two inputs."""
    target, instruction = TARGETS["neoverse-v1"], SQUARES[dtype]

    def takes_squares(graph: Graph) -> bool:
        constants = frozenset(i for i, v in enumerate(graph.inputs) if v.name == "w")
        return instruction in build_kernel(Kernel(graph, constants), target).source()

    def matmul(rows: int, columns: int, right: str = "w") -> Graph:
        g = GraphBuilder()
        operands = g.input("x", (rows, 32), dtype), g.input(right, (32, columns), dtype)
        return g.build(g.op("matmul", *operands, out_dtype=WIDE[dtype]))

    def conv(stride: int) -> Graph:
        g, block = GraphBuilder(), BLOCK[dtype]
        layouts = {f"{end}_layout": f"NCHW{block}c" for end in ("data", "out")}
        operands = g.input("x", (1, 2, 6, 6, block), dtype), g.input("w", (8, 2 * block, 3, 3), dtype)
        return g.build(g.op("conv2d", *operands, strides=(stride,) * 2, out_dtype=WIDE[dtype], **layouts))

    assert all(map(takes_squares, (matmul(2, 8), matmul(5, 12), conv(1))))
    assert not any(map(takes_squares, (matmul(1, 8), matmul(4, 10), matmul(4, 8, "y"), conv(2))))
