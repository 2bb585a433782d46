"""Products of quantized integers: exact in int32, rescaled in float32."""

from __future__ import annotations

from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.frontend.onnx.converters.conv import add_channel_bias, convolve
from tcomp.frontend.onnx.converters.quantized import saturated
from tcomp.relay.graph import Value


@converter("MatMulInteger")
def matmul_integer(ctx: Context, node: OnnxNode) -> Value:
    a = centred(ctx, node.input(0), node.optional(2), rows=True)
    return ctx.op("matmul", a, centred(ctx, node.input(1), node.optional(3)))


@converter("QLinearMatMul")
def quantized_matmul(ctx: Context, node: OnnxNode) -> Value:
    a, a_scale, a_zero, b, b_scale, b_zero = (node.input(i) for i in range(6))
    product = ctx.op("matmul", centred(ctx, a, a_zero, rows=True), centred(ctx, b, b_zero))
    scales = (_column(ctx, a, a_scale), b_scale)
    return requantized(ctx, product, scales, node.input(6), node.input(7))


@converter("ConvInteger")
def conv_integer(ctx: Context, node: OnnxNode) -> Value:
    """Padding is zero after centring: it stands for the zero point."""
    x, weight, zero = node.input(0), node.input(1), node.optional(3)
    zero = None if zero is None else _by_channel(ctx, weight, zero)
    return convolve(ctx, node, centred(ctx, x, node.optional(2)), centred(ctx, weight, zero))


@converter("QLinearConv")
def quantized_conv(ctx: Context, node: OnnxNode) -> Value:
    x, x_scale, x_zero, weight, w_scale, w_zero = (node.input(i) for i in range(6))
    filters = centred(ctx, weight, _by_channel(ctx, weight, w_zero))
    product = add_channel_bias(ctx, convolve(ctx, node, centred(ctx, x, x_zero), filters), node.optional(8))
    if w_scale.type.size != 1:
        w_scale = ctx.reshape(w_scale, (1, w_scale.shape[0], *(1,) * (x.type.rank - 2)))
    return requantized(ctx, product, (x_scale, w_scale), node.input(6), node.input(7))


def centred(ctx: Context, x: Value, zero: Value | None, rows: bool = False) -> Value:
    """x - zero point as int32; with `rows`, a zero point [M] belongs to the rows of x [M, K]."""
    wide = ctx.cast(x, "int32")
    if zero is None:
        return wide
    return ctx.op("sub", wide, ctx.cast(_column(ctx, x, zero) if rows else zero, "int32"))


def _column(ctx: Context, x: Value, parameter: Value) -> Value:
    """A parameter [M] of the rows of x [M, K] as [M, 1]."""
    if parameter.type.rank != 1 or parameter.type.size == 1:
        return parameter
    return ctx.reshape(parameter, (parameter.shape[0], 1))


def _by_channel(ctx: Context, weight: Value, zero: Value) -> Value:
    """A zero point [M] as [M, 1, ...], for a weight [M, C, ...]."""
    if zero.type.rank != 1 or zero.type.size == 1:
        return zero
    return ctx.reshape(zero, (zero.shape[0], *(1,) * (weight.type.rank - 1)))


def requantized(
    ctx: Context, product: Value, scales: tuple[Value, Value], scale: Value, zero: Value
) -> Value:
    """saturate(round(product * scales / scale) + zero)."""
    first, second, last = (ctx.cast(s, "float32") for s in (*scales, scale))
    factor = ctx.op("div", ctx.op("mul", first, second), last)
    levels = ctx.op("round", ctx.op("mul", ctx.cast(product, "float32"), factor))
    return saturated(ctx, levels, zero, zero.dtype)
