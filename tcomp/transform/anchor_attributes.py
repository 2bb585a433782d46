"""Attributes that passes set on the products of fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tcomp.relay.attributes import graph as graph_attribute
from tcomp.relay.graph import Attr, Graph, Node
from tcomp.tensor.kernel import anchors_of

Takes = Callable[[Node, Graph, Node], bool]
"""Whether an attribute is for the only anchor of a kernel: `takes(kernel, body, anchor)`."""


def set_on_anchors(graph: Graph, keep: str, takes: Takes, **attrs: Attr) -> tuple[Graph, int]:
    """`graph` with `attrs` on the anchors that `takes` accepts, and how many these are.

    Kernels of several anchors, and those whose names are in `keep`, joined by `|`, stay as they are.
    """
    kept = frozenset(keep.split("|")) - {""}

    def changed(kernel: Node) -> Node:
        if kernel.op != "fused" or kernel.name in kept:
            return kernel
        body = graph_attribute(kernel.attrs, "body")
        anchors = anchors_of(body)
        if len(anchors) != 1 or not takes(kernel, body, anchors[0]):
            return kernel
        (anchor,) = anchors
        nodes = tuple(replace(n, attrs={**n.attrs, **attrs}) if n is anchor else n for n in body.nodes)
        new = Graph(body.inputs, nodes, body.outputs, body.name)
        return replace(kernel, attrs={**kernel.attrs, "body": new})

    nodes = tuple(map(changed, graph.nodes))
    count = sum(new is not old for new, old in zip(nodes, graph.nodes, strict=True))
    return (Graph(graph.inputs, nodes, graph.outputs, graph.name), count) if count else (graph, 0)
