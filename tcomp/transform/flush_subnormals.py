"""Subnormal weights become zero: CPUs multiply and add them a hundred times slower.

Training with weight decay leaves whole channels of weights below the smallest normal number. Each product
with one changes a sum by less than that number times the other operand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.op import OPS, FusionKind
from tcomp.relay.types import Array
from tcomp.transform.pass_ import Pass, declare_pass


@declare_pass
@dataclass(frozen=True)
class FlushSubnormals(Pass):
    """Set subnormal elements of float32 and float64 constants that enter sums to zero.

    These are the constant operands of convolutions, matrix products, `add` and `sub`.
    """

    name: ClassVar[str] = "flush-subnormals"

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        flushed: dict[Value, Value] = {}
        for value in dict.fromkeys(v for n in graph.nodes if _is_sum(n) for v in n.inputs):
            if isinstance(value, Constant) and value.dtype in ("float32", "float64"):
                data, count = _flush(value.data)
                if count:
                    flushed[value] = Constant.of(data, value.name)
                    stats["elements"] += count
        if not flushed:
            return graph
        nodes = [
            replace(n, inputs=tuple(flushed.get(v, v) for v in n.inputs)) if _is_sum(n) else n
            for n in graph.nodes
        ]
        return Graph(graph.inputs, tuple(nodes), graph.outputs, graph.name)


def _is_sum(node: Node) -> bool:
    return node.op in ("add", "sub") or OPS[node.op].kind is FusionKind.CONTRACTION


def _flush(data: Array) -> tuple[Array, int]:
    """`data` without subnormal elements, and how many there were; a broadcast array stays one."""
    stored = data[tuple(slice(None) if stride else slice(0, 1) for stride in data.strides)]
    small = (np.abs(stored) < np.finfo(data.dtype).smallest_normal) & (stored != 0)
    count = int(small.sum())
    if not count:
        return data, 0
    zero = np.zeros((), data.dtype)
    return np.broadcast_to(np.where(small, zero, stored), data.shape), count
