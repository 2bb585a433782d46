"""Operators on quantized tensors that ONNX Runtime's quantizer writes beside ONNX's own."""

from __future__ import annotations

import numpy as np

from tcomp.errors import UnsupportedError
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.frontend.onnx.converters.integer_arithmetic import centred, requantized
from tcomp.frontend.onnx.converters.quantized import to_levels
from tcomp.ops.quantized import unpacked
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


@converter("MatMulNBits", domain=DOMAIN)
def matmul_of_bits(ctx: Context, node: OnnxNode) -> Value:
    """a times weights of 4 or 8 bits `[N, blocks, bytes of a block]`, transposed, plus a bias."""
    bits, block = node.integer("bits", 4), node.integer("block_size")
    rows, columns = node.integer("N"), node.integer("K")
    if node.optional(4) is not None:
        raise UnsupportedError("g_idx orders the depth; quantize the model without reordering (act_order)")
    if bits not in (4, 8):
        raise UnsupportedError(f"bits is {bits}; only 4 and 8 are supported")
    blocks = -(-columns // block)
    x, weights, scales = node.input(0), ctx.array(node.input(1), "B"), ctx.array(node.input(2), "scales")
    given, zero = node.optional(3), np.array(1 << (bits - 1), np.uint8)
    if given is not None and given.dtype != "uint8":
        raise UnsupportedError(f"zero_points are {given.dtype}; only whole ones, in uint8, are supported")
    if given is not None:
        packed = ctx.array(given, "zero_points").reshape(rows, -1)
        zero = np.ascontiguousarray(unpacked(packed, bits)[:, :blocks])
    operands = (weights.reshape(rows, -1), scales.reshape(rows, blocks), zero)
    attrs = {"bits": bits, "block": block, "columns": columns}
    wide = ctx.later("dequantize_blocks", *(ctx.constant(a) for a in operands), **attrs)
    product = ctx.op("matmul", x, wide, transpose_b=True)
    bias = node.optional(5)
    return product if bias is None else ctx.op("add", product, bias)


def _dequantized(ctx: Context, node: OnnxNode, first: int) -> Value:
    """Operand `first`, whose scale and zero point are the next two; each is one number."""
    x, scale = node.input(first), ctx.reshape(node.input(first + 1), ())
    return ctx.later("dequantize", x, scale, ctx.reshape(_zero(ctx, node, first + 2), ()))


def _zero(ctx: Context, node: OnnxNode, index: int) -> Value:
    zero = node.optional(index)
    return ctx.constant(0, node.input(0).dtype) if zero is None else zero
