"""Operators on quantized tensors that ONNX Runtime's quantizer writes beside ONNX's own."""

from __future__ import annotations

from tcomp.errors import UnsupportedError
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.frontend.onnx.converters.integer_arithmetic import centred, requantized
from tcomp.frontend.onnx.converters.quantized import to_levels
from tcomp.relay.graph import Value

DOMAIN = "com.microsoft"


@converter("QLinearAdd", "QLinearMul", domain=DOMAIN)
def quantized_arithmetic(ctx: Context, node: OnnxNode) -> Value:
    operands = [_dequantized(ctx, node, first) for first in (0, 3)]
    result = ctx.op(node.op_type.removeprefix("QLinear").lower(), *operands)
    return to_levels(ctx, result, node.input(6), _zero(ctx, node, 7))


@converter("QLinearGlobalAveragePool", domain=DOMAIN)
def quantized_global_pool(ctx: Context, node: OnnxNode) -> Value:
    x = _dequantized(ctx, node, 0)
    if node.integer("channels_last", 0):
        raise UnsupportedError("channels_last is 1; only channels before the image are supported")
    mean = ctx.op("reduce_mean", x, axes=tuple(range(2, x.type.rank)), keepdims=True)
    return to_levels(ctx, mean, node.input(3), _zero(ctx, node, 4))


@converter("QGemm", domain=DOMAIN)
def quantized_gemm(ctx: Context, node: OnnxNode) -> Value:
    """alpha * a b + c, where c has the scale of the product."""
    transposed = {f"transpose_{x}": bool(node.integer(f"trans{x.upper()}", 0)) for x in "ab"}
    a = centred(ctx, node.input(0), node.optional(2))
    b = centred(ctx, node.input(3), node.optional(5), rows=transposed["transpose_b"])
    product = ctx.op("matmul", a, b, **transposed)
    bias, scales = node.optional(6), (node.input(1), node.input(4))
    if bias is not None:
        product = ctx.op("add", product, bias)
    alpha = ctx.constant(node.real("alpha", 1.0), "float32")
    scales = (ctx.op("mul", scales[0], alpha), scales[1])
    if node.optional(7) is None:
        return ctx.op("mul", ctx.cast(product, "float32"), ctx.op("mul", *scales))
    return requantized(ctx, product, scales, node.input(7), node.input(8))


def _dequantized(ctx: Context, node: OnnxNode, first: int) -> Value:
    """Operand `first`, whose scale and zero point are the next two; each is one number."""
    x, scale = node.input(first), ctx.reshape(node.input(first + 1), ())
    return ctx.later("dequantize", x, scale, ctx.reshape(_zero(ctx, node, first + 2), ()))


def _zero(ctx: Context, node: OnnxNode, index: int) -> Value:
    zero = node.optional(index)
    return ctx.constant(0, node.input(0).dtype) if zero is None else zero
