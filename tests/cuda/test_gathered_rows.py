"""Embeddings are gathered by the kernel that normalizes them, on an emulated GPU."""

from __future__ import annotations

import numpy as np

from tcomp import api
from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel

RNG = np.random.default_rng(0)


def embeddings(axis: int = 0) -> Graph:
    """Rows of a table, to which positions are added; with axis 1 its columns."""
    g = GraphBuilder("embeddings")
    words = g.constant(RNG.standard_normal((50, 24) if axis == 0 else (24, 50)).astype(np.float32))
    x = g.op("gather", words, g.input("ids", (2, 24), "int64"), axis=axis)
    x = g.op("add", x, g.constant(RNG.standard_normal(x.type.static_shape[-2:]).astype(np.float32)))
    last = x.type.static_shape[-1]
    scale, shift = (g.constant(RNG.standard_normal(last).astype(np.float32)) for _ in range(2))
    return g.build(g.op("layer_norm", x, scale, shift, axis=2))


def test_rows_are_gathered_where_they_are_normalized(gpu: Target) -> None:
    graph = embeddings()
    (node,) = api.optimize(graph, gpu).nodes
    ids = RNG.integers(0, 50, (2, 24))
    kernel = Kernel.of(node)
    assert kernel.label.startswith("gather_add_layer_norm")
    constants = [getattr(v, "data", ids) for v in node.inputs]
    (found,) = build_kernel(kernel, gpu)(constants)
    (expected,) = evaluate(graph, [ids])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_columns_and_other_targets_are_gathered_apart() -> None:
    assert len(api.optimize(embeddings(axis=1), TARGETS["cuda:sm_80"]).nodes) == 2
    assert len(api.optimize(embeddings(), TARGETS["x86-64-v4"]).nodes) == 2


def test_gathering_all_in_order_moves_nothing() -> None:
    """Whatever the shape of the indices: as masks of attention do."""
    g = GraphBuilder()
    rows = g.op("gather", g.input("x", (6, 5)), g.constant(np.arange(6).reshape(1, 2, 3)), axis=0)
    graph = g.build(g.op("relu", rows))
    optimized = api.optimize(graph, TARGETS["cuda:sm_80"])
    assert "gather" not in "".join(Kernel.of(n).key for n in optimized.nodes if n.op == "fused")
    data = RNG.standard_normal((6, 5)).astype(np.float32)
    np.testing.assert_array_equal(evaluate(optimized, [data])[0], evaluate(graph, [data])[0])
