"""Compute at compile time what depends on constants alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tcomp.relay.evaluate import evaluate_node
from tcomp.relay.graph import Constant, Graph, Node, Value, subgraphs
from tcomp.relay.rewrite import GraphEditor
from tcomp.relay.types import Array, numpy_dtype
from tcomp.transform.pass_ import Pass, declare_pass


@declare_pass
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes that read constants alone by their results, and those whose results have no elements.

    Operands without elements count as constants, so that sums of nothing, such as products of depth 0, are
    zeros before templates see them.

    A result larger than `growth_limit` bytes and than the operands together is left to run time: an
    expanded constant costs more memory than the expansion costs time. A broadcast constant is a numpy view
    that costs no memory until it is packed, so models with weights given as one number fold up to
    `broadcast_limit` bytes, and so does what is made of no elements.
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
        if _all_empty(node.outputs):
            return True
        if not all(isinstance(v, Constant) or _all_empty([v]) for v in node.inputs):
            return False
        result = sum(v.type.nbytes for v in node.outputs)
        if (node.op == "broadcast_to" or _is_of_nothing(node)) and result <= self.broadcast_limit:
            return True
        return result <= max(self.growth_limit, sum(v.type.nbytes for v in node.inputs))


def _all_empty(values: Sequence[Value]) -> bool:
    return all(v.type.is_static and v.type.nbytes == 0 for v in values)


def _is_of_nothing(node: Node) -> bool:
    """Whether no operand has an element, so that all elements of the result are the same."""
    return len(node.inputs) > 0 and _all_empty(node.inputs)


def _results(node: Node) -> list[Array]:
    if _all_empty(node.outputs):
        return [_empty(v) for v in node.outputs]
    operands = [v.data if isinstance(v, Constant) else _empty(v) for v in node.inputs]
    if node.op == "broadcast_to":
        return [np.broadcast_to(operands[0], node.output.type.static_shape)]
    results = evaluate_node(node, operands)
    if _is_of_nothing(node):
        return [np.broadcast_to(r[(0,) * r.ndim], r.shape) for r in results]
    return results


def _empty(value: Value) -> Array:
    return np.empty(value.type.static_shape, numpy_dtype(value.type.dtype))
