"""Conversion to and from quantized integers, per tensor, per axis or in blocks."""

from __future__ import annotations

import numpy as np

from tcomp.errors import UnsupportedError
from tcomp.frontend.onnx.axes import normalise_axis
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.frontend.onnx.float8 import cast_to
from tcomp.frontend.onnx.tensors import dtype_of
from tcomp.ops.quantized import packed_weights
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Constant, Value
from tcomp.relay.types import FLOAT8


@converter("QuantizeLinear")
def quantize(ctx: Context, node: OnnxNode) -> Value:
    """saturate(round(x / scale) + zero_point); levels of float8 are not rounded to whole numbers before."""
    x, zero = node.input(0), node.optional(2)
    declared = node.integer("output_dtype", 0)
    default = "uint8" if declared == 0 else dtype_of(declared, "the result of this QuantizeLinear")
    dtype = zero.dtype if zero is not None else default
    scale = _aligned(ctx, node, x, ctx.cast(node.input(1), x.dtype))
    levels = ctx.op("div", x, scale)
    zero = None if zero is None else _aligned(ctx, node, x, zero)
    if dtype in FLOAT8:
        if zero is not None:
            levels = ctx.op("add", levels, ctx.cast(zero, x.dtype))
        return cast_to(ctx, node, levels, dtype)
    return saturated(ctx, ctx.cast(ctx.op("round", levels), "float32"), zero, dtype)


def to_levels(ctx: Context, x: Value, scale: Value, zero: Value) -> Value:
    """saturate(round(x / scale) + zero) with one scale and zero point for all of x."""
    levels = ctx.op("round", ctx.op("div", x, ctx.reshape(scale, ())))
    return saturated(ctx, levels, ctx.reshape(zero, ()), zero.dtype)


def saturated(ctx: Context, levels: Value, zero: Value | None, dtype: str) -> Value:
    """float32 `levels` and the zero point as integers of `dtype`, the nearest where they are beyond these."""
    if zero is not None:
        levels = ctx.op("add", levels, ctx.cast(zero, "float32"))
    limits = np.iinfo(dtype)
    return ctx.cast(ctx.op("clip", levels, min=float(limits.min), max=float(limits.max)), dtype)


@converter("DequantizeLinear")
def dequantize(ctx: Context, node: OnnxNode) -> Value:
    """(x - zero_point) * scale. Quantized weights stay so: a product may take them as they are."""
    x, zero = node.input(0), node.optional(2)
    if node.input(1).type.rank > 1 and (weights := _block_weights(ctx, node)) is not None:
        return weights
    scale = _aligned(ctx, node, x, node.input(1))
    zero = ctx.constant(0, x.dtype) if zero is None else _aligned(ctx, node, x, zero)
    return (
        ctx.op("dequantize", x, scale, zero) if x.type.rank < 2 else ctx.later("dequantize", x, scale, zero)
    )


def _block_weights(ctx: Context, node: OnnxNode) -> Value | None:
    """Constant matrices with scales of blocks along an axis, which products take as they are; else None."""
    x, scale, zero = node.input(0), node.input(1), node.optional(2)
    known = all(isinstance(v, Constant) for v in (x, scale, *(() if zero is None else (zero,))))
    if not known or x.type.rank != 2 or x.dtype not in ("int8", "uint8", *FLOAT8):
        return None
    axis, block = normalise_axis(node.integer("axis", 1), x), node.integer("block_size", 0)
    columns = x.type.static_shape[axis]
    if block <= 0 or scale.type.static_shape[axis] != -(-columns // block):
        return None
    levels, scales = ctx.array(x, "data"), ctx.array(scale, "scale")
    zeros = np.zeros((1, 1), levels.dtype) if zero is None else ctx.array(zero, "zero point")
    if x.dtype in FLOAT8 and zeros.any():
        return None
    if axis == 0:
        levels, scales, zeros = (np.swapaxes(a, 0, 1) for a in (levels, scales, zeros))
    weights, shifts, bits = packed_weights(levels, zeros)
    operands = (ctx.constant(a) for a in (weights, scales, shifts))
    wide = ctx.later("dequantize_blocks", *operands, bits=bits, block=block, columns=columns)
    return ctx.later("transpose", wide, axes=(1, 0)) if axis == 0 else wide


def _aligned(ctx: Context, node: OnnxNode, x: Value, parameter: Value) -> Value:
    """A scale or zero point shaped to broadcast over `x`."""
    if parameter.type.rank == 0 or parameter.type.size == 1:
        return ctx.reshape(parameter, ())
    axis = normalise_axis(node.integer("axis", 1), x)
    if parameter.type.rank == 1:
        return ctx.reshape(parameter, (parameter.shape[0], *(1,) * (x.type.rank - axis - 1)))
    block = node.integer("block_size", 0)
    if block <= 0:
        raise UnsupportedError(f"parameters of type {parameter.type} need a block_size")
    # [.., blocks, ..] -> [.., blocks, block, ..] -> [.., blocks * block, ..], cut to x's size
    shape: tuple[Dim, ...] = parameter.shape
    wide = ctx.reshape(parameter, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    spread = ctx.broadcast_to(wide, (*shape[: axis + 1], block, *shape[axis + 1 :]))
    joined = ctx.reshape(spread, (*shape[:axis], shape[axis] * block, *shape[axis + 1 :]))
    if joined.shape == x.shape:
        return joined
    return ctx.op("slice", joined, begin=(0,) * x.type.rank, end=x.shape, strides=(1,) * x.type.rank)
