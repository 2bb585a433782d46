"""Products that may be computed by Strassen's algorithm, where they gain from it and rounding is let go.

It runs on fused kernels. Errors of that algorithm are as large as those of other rows and columns
(`tcomp.tensor.strassen`), so that only `--precision fast` asks for it, where 16 bits are no faster.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from tcomp.relay.attributes import graph as graph_attribute
from tcomp.relay.attributes import integer, integers
from tcomp.relay.graph import Constant, Graph, Node
from tcomp.tensor.kernel import anchors_of
from tcomp.transform.pass_ import Pass, declare_pass


@declare_pass
@dataclass(frozen=True)
class AllowStrassen(Pass):
    """Let products of float32 with constant weights, and pointwise convolutions, multiply sums of elements.

    `keep` names kernels that do not, joined by `|`.
    """

    name: ClassVar[str] = "allow-strassen"
    keep: str = ""

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        keep = frozenset(self.keep.split("|")) - {""}
        nodes = [n if n.op != "fused" or n.name in keep else _allowed(n) for n in graph.nodes]
        changed = sum(new is not old for new, old in zip(nodes, graph.nodes, strict=True))
        if not changed:
            return graph
        stats["products of sums"] += changed
        return Graph(graph.inputs, tuple(nodes), graph.outputs, graph.name)


def _allowed(kernel: Node) -> Node:
    """`kernel` with a product that may be one of sums; itself where it has none."""
    body = graph_attribute(kernel.attrs, "body")
    anchors = anchors_of(body)
    if len(anchors) != 1 or not _gains(anchors[0]) or not _is_constant(kernel, body, anchors[0]):
        return kernel
    attrs = {**anchors[0].attrs, "strassen": True}
    nodes = tuple(replace(n, attrs=attrs) if n is anchors[0] else n for n in body.nodes)
    changed = Graph(body.inputs, nodes, body.outputs, body.name)
    return replace(kernel, attrs={**kernel.attrs, "body": changed})


def _gains(anchor: Node) -> bool:
    if anchor.op not in ("matmul", "conv2d") or anchor.inputs[0].dtype != "float32":
        return False
    if anchor.op == "matmul":
        return True
    taps = prod(anchor.inputs[1].type.static_shape[2:])
    return taps == integer(anchor.attrs, "groups") == 1 and not any(integers(anchor.attrs, "padding"))


def _is_constant(kernel: Node, body: Graph, anchor: Node) -> bool:
    """Whether the anchor's weights are a constant of the graph."""
    outer = dict(zip(body.inputs, kernel.inputs, strict=True))
    return isinstance(outer.get(anchor.inputs[1]), Constant)
