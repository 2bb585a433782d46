"""Max pooling that also says where each maximum was, and its inverse."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

from tcomp.errors import UnsupportedError
from tcomp.frontend.onnx.context import SHAPE_REMEDY, Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.frontend.onnx.windows import Window
from tcomp.relay.graph import Value
from tcomp.relay.types import FLOATS, Array, numpy_dtype


def max_with_indices(ctx: Context, node: OnnxNode, x: Value, window: Window, pooled: Value) -> list[Value]:
    """The maxima of `x` [N, C, spatial...], of `pooled`'s type, and their int64 positions in flat `x`.

    The taps of the window are compared one after the other, so that the first of equal ones wins. A tap in
    the padding stands for the element nearest to it, which keeps every position inside `x`, also in
    windows of nothing but -inf.
    """
    if not x.type.is_static:
        raise UnsupportedError(f"its indices depend on the shape {x.type}; {SHAPE_REMEDY}")
    (batch, channels, *extents), positions = x.type.static_shape, pooled.type.static_shape[2:]
    begin, reach = window.padding[: window.rank], _reach(window, positions)
    end = tuple(max(r - e - b, 0) for r, e, b in zip(reach, extents, begin, strict=True))
    lowest = float("-inf") if x.dtype in FLOATS else int(np.iinfo(numpy_dtype(x.dtype)).min)
    padded = ctx.op("pad", x, padding=(0, 0, *begin, 0, 0, *end), value=lowest)
    order = node.integer("storage_order", 0)
    best, index = None, None
    for tap in product(*(range(k) for k in window.kernel)):
        start = tuple(t * d for t, d in zip(tap, window.dilation, strict=True))
        stop = tuple(
            s + (p - 1) * step + 1 for s, p, step in zip(start, positions, window.strides, strict=True)
        )
        view = ctx.op(
            "slice",
            padded,
            begin=(0, 0, *start),
            end=(batch, channels, *stop),
            strides=(1, 1, *window.strides),
        )
        flat = ctx.constant(_flat_positions(window, start, extents, positions, order))
        if best is None or index is None:
            best, index = view, ctx.broadcast_to(flat, pooled.shape)
            continue
        better = ctx.op("greater", view, best)
        best, index = ctx.op("where", better, view, best), ctx.op("where", better, flat, index)
    if best is None or index is None:
        raise UnsupportedError(f"its window {list(window.kernel)} is empty")
    planes = np.arange(batch * channels, dtype=np.int64).reshape(batch, channels, *(1,) * window.rank)
    return [best, ctx.op("add", index, ctx.constant(planes * prod(extents)))]


def _reach(window: Window, positions: tuple[int, ...]) -> tuple[int, ...]:
    """How many cells of the padded input the windows at `positions` span."""
    return tuple(
        (p - 1) * s + (k - 1) * d + 1
        for p, s, k, d in zip(positions, window.strides, window.kernel, window.dilation, strict=True)
    )


def _flat_positions(
    window: Window, start: tuple[int, ...], extents: list[int], positions: tuple[int, ...], order: int
) -> Array:
    """Where one tap of every window lies in its plane [1, 1, spatial...]; order 1 is column-major."""
    total = np.zeros((1, 1, *positions), np.int64)
    for axis, extent in enumerate(extents):
        at = np.arange(positions[axis]) * window.strides[axis] + start[axis] - window.padding[axis]
        step = prod(extents[:axis]) if order else prod(extents[axis + 1 :])
        along = np.clip(at, 0, extent - 1) * step
        total = total + along.reshape([-1 if a == axis + 2 else 1 for a in range(total.ndim)])
    return total


@converter("MaxUnpool")
def max_unpool(ctx: Context, node: OnnxNode) -> Value:
    """Each element at its position of a tensor of zeros, which is enlarged to the output shape."""
    x, indices, shape = node.input(0), node.input(1), node.optional(2)
    if not x.type.is_static:
        raise UnsupportedError(f"its output depends on the shape {x.type}; {SHAPE_REMEDY}")
    kernel = node.integers("kernel_shape")
    strides = node.integers("strides", (1,) * len(kernel))
    padding = node.integers("pads", (0,) * (2 * len(kernel)))
    inferred = list(x.type.static_shape[:2])
    for axis, extent in enumerate(x.type.static_shape[2:]):
        inferred.append(
            (extent - 1) * strides[axis] + kernel[axis] - padding[axis] - padding[axis + len(kernel)]
        )
    zeros = ctx.broadcast_to(ctx.constant(0, x.dtype), (prod(inferred),))
    count = (x.type.size,)
    placed = ctx.op(
        "scatter_elements",
        zeros,
        ctx.reshape(indices, count),
        ctx.reshape(x, count),
        axis=0,
        reduction="none",
    )
    result = ctx.reshape(placed, inferred)
    if shape is None:
        return result
    after = [w - i for w, i in zip(ctx.integers(shape, "output shape"), inferred, strict=True)]
    return ctx.op("pad", result, padding=(*(0,) * len(inferred), *after))
