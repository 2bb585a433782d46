"""Products in tf32: float32 operands are rounded where they are multiplied, and stored as they are.

It runs on fused kernels. Tensors keep their types, so that products lose bits and nothing else does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

from tcomp.relay.attributes import graph as graph_attribute
from tcomp.relay.attributes import integer
from tcomp.relay.graph import Graph, Node
from tcomp.tensor.kernel import anchors_of
from tcomp.transform.pass_ import Pass, declare_pass

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


@declare_pass
@dataclass(frozen=True)
class RoundFactors(Pass):
    """Let matrix products and ungrouped convolutions of float32 multiply tf32.

    `keep` names kernels that multiply float32, joined by `|`.
    """

    name: ClassVar[str] = "round-factors"
    keep: str = ""

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        keep = frozenset(self.keep.split("|")) - {""}
        nodes = [n if n.op != "fused" or n.name in keep else _rounded(n) for n in graph.nodes]
        changed = sum(new is not old for new, old in zip(nodes, graph.nodes, strict=True))
        if not changed:
            return graph
        stats["products in tf32"] += changed
        return Graph(graph.inputs, tuple(nodes), graph.outputs, graph.name)


def _rounded(kernel: Node) -> Node:
    """`kernel` with a product that rounds its factors; itself where it has none that can."""
    body = graph_attribute(kernel.attrs, "body")
    anchors = anchors_of(body)
    if len(anchors) != 1 or not _can_round(anchors[0]):
        return kernel
    attrs = {**anchors[0].attrs, "multiply_as": "tf32"}
    nodes = tuple(replace(n, attrs=attrs) if n is anchors[0] else n for n in body.nodes)
    changed = Graph(body.inputs, nodes, body.outputs, body.name)
    return replace(kernel, attrs={**kernel.attrs, "body": changed})


def _can_round(anchor: Node) -> bool:
    if anchor.op not in ("matmul", *_CONVOLUTIONS) or anchor.attrs["multiply_as"]:
        return False
    grouped = anchor.op != "matmul" and integer(anchor.attrs, "groups") > 1
    return anchor.inputs[0].dtype == "float32" and not grouped
