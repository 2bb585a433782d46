"""Write resizes as gathers, products and sums with constant tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tcomp.ops.resize import Taps, axis_taps
from tcomp.ops.shapes import accumulator
from tcomp.relay.attributes import dims, number
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.rewrite import GraphEditor
from tcomp.relay.types import FLOATS, Array, numpy_dtype
from tcomp.transform.pass_ import Pass, declare_pass


@declare_pass
@dataclass(frozen=True)
class LowerResize(Pass):
    """Replace `resize` by what it does along each axis.

    Up to `gather_limit` taps an axis are gathered one by one, weighted and added, which fuses into one
    kernel; more, as antialiased shrinking has, are a product with the matrix of all weights. Resizes along a
    symbolic axis stay.
    """

    name: ClassVar[str] = "lower-resize"
    gather_limit: int = 4

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        if not any(node.op == "resize" for node in graph.nodes):
            return graph
        editor = GraphEditor(graph)
        for node in graph.nodes:
            copied = editor.copy(node)
            taps = _all_taps(copied) if copied.op == "resize" else None
            if taps is not None:
                editor.replace(node.output, self._lowered(editor, copied, taps))
                stats["lowered"] += 1
        return editor.finish()

    def _lowered(self, editor: GraphEditor, node: Node, taps: dict[int, Taps]) -> Value:
        (x,) = node.inputs
        weighted = node.attrs["mode"] != "nearest"
        wide = accumulator(x.dtype) if x.dtype in FLOATS else "float32"
        result = editor.op("cast", x, dtype=wide) if weighted and x.dtype != wide else x
        for axis, table in taps.items():
            if not weighted:
                result = editor.op("gather", result, Constant.of(table.indices[0]), axis=axis)
            elif len(table.indices) <= self.gather_limit:
                result = _gathered(editor, result, axis, table)
            else:
                result = _multiplied(editor, result, axis, table)
            if not table.inside.all():
                inside = Constant.of(_along(table.inside, axis, x.type.rank))
                outside = np.asarray(number(node.attrs, "extrapolation_value"))
                fill = Constant.of(outside.astype(numpy_dtype(result.dtype)))
                result = editor.op("where", inside, result, fill)
        return result if result.dtype == x.dtype else editor.op("cast", result, dtype=x.dtype)


def _all_taps(node: Node) -> dict[int, Taps] | None:
    """The taps of every axis that changes; None when one of them is symbolic."""
    found: dict[int, Taps] = {}
    for axis, (extent, length) in enumerate(
        zip(node.inputs[0].shape, dims(node.attrs, "sizes"), strict=True)
    ):
        if isinstance(extent, int) and isinstance(length, int):
            taps = axis_taps(node.attrs, axis, extent, length)
            if taps is not None:
                found[axis] = taps
        elif extent != length:
            return None
    return found


def _along(row: Array, axis: int, rank: int) -> Array:
    return row.reshape([-1 if a == axis else 1 for a in range(rank)])


def _gathered(editor: GraphEditor, x: Value, axis: int, taps: Taps) -> Value:
    total: Value | None = None
    weights = taps.weights.astype(numpy_dtype(x.dtype))
    for indices, weight in zip(taps.indices, weights, strict=True):
        part = editor.op("gather", x, Constant.of(indices), axis=axis)
        factor = Constant.of(_along(weight, axis, x.type.rank))
        part = editor.op("mul", part, factor)
        total = part if total is None else editor.op("add", total, part)
    return x if total is None else total


def _multiplied(editor: GraphEditor, x: Value, axis: int, taps: Taps) -> Value:
    """`x` with `axis` last, times the [extent, out] matrix of weights, and back."""
    extent = x.type.static_shape[axis]
    matrix = np.zeros((extent, taps.indices.shape[1]), numpy_dtype(x.dtype))
    for indices, weights in zip(taps.indices, taps.weights, strict=True):
        np.add.at(matrix, (indices, np.arange(len(indices))), weights)
    last = x.type.rank - 1
    axes = (*(a for a in range(last + 1) if a != axis), axis)
    moved = editor.op("transpose", x, axes=axes) if axis != last else x
    product = editor.op("matmul", moved, Constant.of(matrix))
    back = tuple(axes.index(a) for a in range(last + 1))
    return editor.op("transpose", product, axes=back) if axis != last else product
