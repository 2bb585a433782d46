"""Small models that several tests compile, made of fused kernels by hand."""

from __future__ import annotations

import numpy as np

from tcomp.relay.builder import GraphBuilder, make_node
from tcomp.relay.graph import Graph, Node, Value


def fused(op: str, *inputs: Value, **attrs: object) -> Node:
    """A kernel of one operator."""
    parameters = tuple(Value(v.type, v.name) for v in inputs)
    inner = make_node(op, parameters, attrs)  # pyright: ignore[reportArgumentType]
    return make_node("fused", inputs, {"body": Graph(parameters, (inner,), inner.outputs, "body")})


def chain() -> Graph:
    """x -> add constant -> relu -> (view) -> exp; outputs the last, the view, a constant and the input."""
    builder = GraphBuilder("chain")
    x = builder.input("x", (4, 32))
    bias = builder.constant(np.linspace(-1, 1, 128, dtype=np.float32).reshape(4, 32), name="bias")
    added = builder.add(fused("add", x, bias)).output
    positive = builder.add(fused("relu", added)).output
    view = builder.op("reshape", positive, shape=(8, 16))
    result = builder.add(fused("exp", view)).output
    again = builder.add(fused("add", result, result)).output
    return builder.build(again, view, bias, x)


def diamond(width: int = 64) -> Graph:
    """Two equal branches with equal constants, joined: kernels and constants that are shared."""
    builder = GraphBuilder("diamond")
    x, y = builder.input("x", (width,)), builder.input("y", (width,))
    ones = [builder.constant(np.ones(width, np.float32)) for _ in range(2)]
    left = builder.add(fused("relu", builder.add(fused("add", x, ones[0])).output)).output
    right = builder.add(fused("relu", builder.add(fused("add", y, ones[1])).output)).output
    return builder.build(builder.add(fused("mul", left, right)).output)
