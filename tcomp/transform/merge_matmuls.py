"""Merge matmuls that read one tensor: query, key and value projections become one product.

q = x Wq + bq, k = x Wk + bk, v = x Wv + bv
  -> y = x [Wq Wk Wv] + [bq bk bv], and q, k, v are slices of its columns
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tcomp.relay.attributes import flag
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.rewrite import GraphEditor
from tcomp.relay.types import Array
from tcomp.transform.pass_ import Pass, declare_pass
from tcomp.transform.rules.scales import per_channel


@dataclass(frozen=True)
class _Projection:
    """x W, or x W + b: its weights as [K, N], the vector added, and the node whose output it is."""

    product: Node
    result: Node
    weight: Array
    bias: Array | None


@declare_pass
@dataclass(frozen=True)
class MergeMatmuls(Pass):
    """One product in place of `at_least` or more that share the left matrix.

    Only where all results are moved anyway (reshaped and transposed into heads): the slices then cost
    nothing, since they join that movement.
    """

    name: ClassVar[str] = "merge-matmuls"
    at_least: int = 2

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        merged = {
            group[0].product: group
            for group in _parallel_projections(graph).values()
            if len(group) >= self.at_least and all(_is_moved(graph, p.result.output) for p in group)
        }
        if not merged:
            return graph
        editor = GraphEditor(graph)
        for node in graph.nodes:
            editor.copy(node)
            if node in merged:
                _merge(editor, merged[node])
                stats["merged"] += len(merged[node])
        return editor.finish()


def _parallel_projections(graph: Graph) -> dict[tuple[Value, str], list[_Projection]]:
    found: dict[tuple[Value, str], list[_Projection]] = {}
    for node in graph.nodes:
        if node.op != "matmul" or flag(node.attrs, "transpose_a") or not node.output.type.is_static:
            continue
        x, weight = node.inputs
        if (
            isinstance(x, Constant)
            or not isinstance(weight, Constant)
            or x.type.rank != 2
            or weight.type.rank != 2
        ):
            continue
        data: Array = np.swapaxes(weight.data, 0, 1) if flag(node.attrs, "transpose_b") else weight.data
        found.setdefault((x, node.output.dtype), []).append(_with_bias(graph, node, data))
    return found


def _with_bias(graph: Graph, product: Node, weight: Array) -> _Projection:
    users = graph.users.get(product.output, ())
    if len(users) == 1 and users[0].op == "add" and graph.use_count(product.output) == 1:
        (add,) = users
        other = add.inputs[1] if add.inputs[0] is product.output else add.inputs[0]
        bias = per_channel(other.data, 2, 1, weight.shape[1]) if isinstance(other, Constant) else None
        if bias is not None and add.output.type == product.output.type:
            return _Projection(product, add, weight, bias)
    return _Projection(product, product, weight, None)


def _is_moved(graph: Graph, value: Value) -> bool:
    """Whether all that happens to `value` is movement into another order."""
    users = graph.users.get(value, ())
    if not users or graph.use_count(value) != len(users):
        return False
    return all(n.op == "transpose" or (n.op == "reshape" and _is_moved(graph, n.output)) for n in users)


def _merge(editor: GraphEditor, group: list[_Projection]) -> None:
    first = group[0].product
    weight = np.concatenate([p.weight for p in group], axis=1)
    name = " ".join(dict.fromkeys(p.product.name for p in group if p.product.name))
    merged = editor.op("matmul", editor.current(first.inputs[0]), Constant.of(weight), name=name)
    if any(p.bias is not None for p in group):
        zeros = [np.zeros(p.weight.shape[1], weight.dtype) for p in group]
        bias = [z if p.bias is None else p.bias for p, z in zip(group, zeros, strict=True)]
        merged = editor.op("add", merged, Constant.of(np.concatenate(bias).reshape(1, -1)), name=name)
    start = 0
    rows = merged.type.static_shape[0]
    for projection in group:
        end = start + projection.weight.shape[1]
        columns = editor.op(
            "slice", merged, begin=(0, start), end=(rows, end), strides=(1, 1), name=projection.product.name
        )
        editor.replace(projection.result.output, columns)
        start = end
