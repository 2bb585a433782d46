"""Compute at compile time what depends on constants alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tcomp.relay.evaluate import evaluate_node
from tcomp.relay.graph import Constant, Graph, Node, subgraphs
from tcomp.relay.rewrite import GraphEditor
from tcomp.relay.types import Array, numpy_dtype
from tcomp.transform.pass_ import Pass, declare_pass


@declare_pass
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes that read constants alone by their results, and those whose results have no elements.

    A result larger than `growth_limit` bytes and than the operands together is left to run time: an
    expanded constant costs more memory than the expansion costs time. A broadcast constant is a numpy view
    that costs no memory until it is packed, so models with weights given as one number fold up to
    `broadcast_limit` bytes.
    """

    name: ClassVar[str] = "fold-constants"
    growth_limit: int = 1 << 20
    broadcast_limit: int = 1 << 30

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        editor = GraphEditor(graph)
        folded = 0
        for node in graph.nodes:
            copied = editor.copy(node)
            if not self._is_foldable(copied):
                continue
            for old, data in zip(node.outputs, _results(copied), strict=True):
                editor.replace(old, Constant.of(data, old.name))
            folded += 1
        if not folded:
            return graph
        stats["folded"] += folded
        return editor.finish()

    def _is_foldable(self, node: Node) -> bool:
        if any(True for _ in subgraphs(node)) or not all(v.type.is_static for v in node.outputs):
            return False
        if _has_no_elements(node):
            return True
        if not all(isinstance(v, Constant) for v in node.inputs):
            return False
        result = sum(v.type.nbytes for v in node.outputs)
        if node.op == "broadcast_to" and result <= self.broadcast_limit:
            return True
        return result <= max(self.growth_limit, sum(v.type.nbytes for v in node.inputs))


def _has_no_elements(node: Node) -> bool:
    return all(v.type.nbytes == 0 for v in node.outputs)


def _results(node: Node) -> list[Array]:
    if _has_no_elements(node):
        return [np.empty(v.type.static_shape, numpy_dtype(v.type.dtype)) for v in node.outputs]
    operands = [v.data for v in node.inputs if isinstance(v, Constant)]
    if node.op == "broadcast_to":
        return [np.broadcast_to(operands[0], node.output.type.static_shape)]
    return evaluate_node(node, operands)
