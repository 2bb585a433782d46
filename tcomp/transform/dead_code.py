"""Remove what no output needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from tcomp.relay.graph import Graph, topological
from tcomp.transform.pass_ import Pass, declare_pass


@declare_pass
@dataclass(frozen=True)
class DeadCode(Pass):
    """Remove nodes whose results reach no output."""

    name: ClassVar[str] = "dead-code"

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        needed = topological(graph.outputs, graph.producers)
        removed = len(graph.nodes) - len(needed)
        if not removed:
            return graph
        stats["removed"] += removed
        kept = set(needed)
        return Graph(graph.inputs, tuple(n for n in graph.nodes if n in kept), graph.outputs, graph.name)
