"""Compute equal things once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from tcomp.relay.graph import Constant, Graph, Node, Value, subgraphs
from tcomp.relay.op import OPS
from tcomp.relay.rewrite import GraphEditor
from tcomp.transform.pass_ import Pass, declare_pass


@declare_pass
@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Merge nodes with the same operator, attributes and operands.

    Constants up to `compare_bytes` are compared by content, larger ones by identity.
    """

    name: ClassVar[str] = "common-subexpressions"
    compare_bytes: int = 4096

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        editor = GraphEditor(graph)
        seen: dict[Hashable, Node] = {}
        merged = 0
        for node in graph.nodes:
            copied = editor.copy(node)
            if any(True for _ in subgraphs(node)):
                continue
            first = seen.setdefault(self._key(copied), copied)
            if first is not copied:
                merged += 1
                for old, new in zip(node.outputs, first.outputs, strict=True):
                    editor.replace(old, new)
        if not merged:
            return graph
        stats["merged"] += merged
        return editor.finish()

    def _key(self, node: Node) -> Hashable:
        operands = [self._operand(v) for v in node.inputs]
        if OPS[node.op].commutative:
            operands.sort(key=repr)
        attrs = tuple((k, type(v).__name__, v) for k, v in node.attrs.items())
        return node.op, tuple(operands), attrs

    def _operand(self, value: Value) -> Hashable:
        if isinstance(value, Constant) and value.data.nbytes <= self.compare_bytes:
            return str(value.type), value.data.tobytes()
        return id(value)
