"""Graphs in which sums have no terms, or batches no rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.types import Array


def _product(rows: Sequence[int], depth: int, columns: int) -> Graph:
    g = GraphBuilder("product")
    y = g.op("matmul", g.input("a", (*rows, depth)), g.input("b", (depth, columns)))
    return g.build(g.op("relu", g.op("add", y, g.input("bias", (columns,)))))


def _convolution(batch: int, channels: int) -> Graph:
    g = GraphBuilder("convolution")
    weights = g.input("weights", (5, channels, 3, 3))
    y = g.op("conv2d", g.input("x", (batch, channels, 6, 6)), weights, padding=(1,) * 4)
    return g.build(g.op("max_pool2d", g.op("add", y, g.input("bias", (5, 1, 1))), kernel=(2, 2)))


def _attention(past: int, new: int) -> Graph:
    """The keys and values of `past` positions before those of `new` ones."""
    g = GraphBuilder("attention")

    def joined(name: str) -> Value:
        parts = [g.input(f"{name}_{part}", (1, 2, n, 8)) for part, n in (("past", past), ("new", new))]
        return g.op("concat", *parts, axis=2)

    query, key, value = g.input("query", (1, 2, 3, 8)), joined("key"), joined("value")
    weights = g.op("softmax", g.op("matmul", query, key, transpose_b=True), axis=3)
    return g.build(g.op("matmul", weights, value))


def _reductions() -> Graph:
    g = GraphBuilder("reductions")
    x = g.input("x", (3, 0))
    names = ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min")
    return g.build(*(g.op(name, x, axes=(1,)) for name in names))


GRAPHS = {
    "product of depth 0": _product((4,), 0, 5),
    "large product of depth 0": _product((640,), 0, 640),
    "products of depth 0": _product((2, 3), 0, 20),
    "product of no rows": _product((0,), 7, 5),
    "products of no batch": _product((0, 4), 7, 5),
    "product of no columns": _product((4,), 7, 0),
    "convolution of no channels": _convolution(2, 0),
    "convolution of no images": _convolution(0, 3),
    "attention without a past": _attention(0, 4),
    "attention to nothing": _attention(0, 0),
    "reductions": _reductions(),
}


def inputs_and_outputs(graph: Graph) -> tuple[dict[str, Array], list[Array]]:
    """Random inputs by name, and what the reference makes of them."""
    rng = np.random.default_rng(0)
    arrays = {v.name: rng.standard_normal(v.type.static_shape).astype(np.float32) for v in graph.inputs}
    return arrays, evaluate(graph, arrays)
