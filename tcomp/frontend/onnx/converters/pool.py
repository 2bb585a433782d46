"""Pooling: local windows and global."""

from __future__ import annotations

from math import prod

from tcomp.errors import UnsupportedError
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.frontend.onnx.converters.pool_indices import max_with_indices
from tcomp.frontend.onnx.windows import Window, read_window
from tcomp.relay.graph import Attr, Value


def _op(kind: str, window: Window) -> str:
    if not 1 <= window.rank <= 3:
        raise UnsupportedError(
            f"its window {list(window.kernel)} has {window.rank} axes; 1 to 3 are supported"
        )
    return f"{kind}_pool{window.rank}d"


@converter("MaxPool")
def max_pool(ctx: Context, node: OnnxNode) -> Value | list[Value]:
    x = node.input(0)
    window = read_window(node, x, node.integers("kernel_shape"))
    pooled = _pooled(ctx, node, "max", x, window)
    return max_with_indices(ctx, node, x, window, pooled) if node.uses_output(1) else pooled


@converter("AveragePool")
def average_pool(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    window = read_window(node, x, node.integers("kernel_shape"))
    return _pooled(ctx, node, "avg", x, window, count_include_pad=bool(node.integer("count_include_pad", 0)))


def _pooled(ctx: Context, node: OnnxNode, kind: str, x: Value, window: Window, **attrs: Attr) -> Value:
    return ctx.op(
        _op(kind, window),
        x,
        kernel=window.kernel,
        strides=window.strides,
        padding=window.padding,
        dilation=window.dilation,
        ceil_mode=bool(node.integer("ceil_mode", 0)),
        **attrs,
    )


@converter("LpPool")
def lp_pool(ctx: Context, node: OnnxNode) -> Value:
    """(sum of |x|^p over the window)^(1/p), the sum as an average of the zero-padded input."""
    x, p = node.input(0), node.integer("p", 2)
    window = read_window(node, x, node.integers("kernel_shape"))
    begins, ends = window.padding[: window.rank], list(window.padding[window.rank :])
    if node.integer("ceil_mode", 0):
        for i, size in enumerate(x.shape[2:]):
            extent = (window.kernel[i] - 1) * window.dilation[i] + 1
            if not isinstance(size, int):
                raise UnsupportedError(f"its ceil_mode depends on the dimension `{size}`; give --input-shape")
            ends[i] += -(size + begins[i] + ends[i] - extent) % window.strides[i]
    powers = _power(ctx, ctx.op("abs", x), p)
    powers = ctx.op("pad", powers, padding=(0, 0, *begins, 0, 0, *ends))
    average = ctx.op(
        _op("avg", window),
        powers,
        kernel=window.kernel,
        strides=window.strides,
        padding=(0,) * (2 * window.rank),
        dilation=window.dilation,
    )
    return _root(ctx, ctx.op("mul", average, ctx.constant(prod(window.kernel), x.dtype)), p)


@converter("GlobalAveragePool", "GlobalMaxPool")
def global_pool(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    op = "reduce_mean" if node.op_type == "GlobalAveragePool" else "reduce_max"
    return ctx.op(op, x, axes=tuple(range(2, x.type.rank)), keepdims=True)


@converter("GlobalLpPool")
def global_lp_pool(ctx: Context, node: OnnxNode) -> Value:
    x, p = node.input(0), node.integer("p", 2)
    powers = _power(ctx, ctx.op("abs", x), p)
    return _root(ctx, ctx.op("reduce_sum", powers, axes=tuple(range(2, x.type.rank)), keepdims=True), p)


def _power(ctx: Context, x: Value, p: int) -> Value:
    if p == 1:
        return x
    return ctx.op("mul", x, x) if p == 2 else ctx.op("pow", x, ctx.constant(p, x.dtype))


def _root(ctx: Context, x: Value, p: int) -> Value:
    if p == 1:
        return x
    return ctx.op("sqrt", x) if p == 2 else ctx.op("pow", x, ctx.constant(1 / p, x.dtype))
