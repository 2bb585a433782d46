"""Normalisation layers, inference only."""

from __future__ import annotations

import numpy as np

from tcomp.errors import UnsupportedError
from tcomp.frontend.onnx.axes import normalise_axes, normalise_axis, static_dim
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.relay.graph import Value


@converter("BatchNormalization")
def batch_norm(ctx: Context, node: OnnxNode) -> Value:
    if node.integer("training_mode", 0) or any(node.uses_output(i) for i in range(1, 5)):
        raise UnsupportedError("it is in training mode; export the model for inference")
    if not node.integer("spatial", 1):
        raise UnsupportedError("spatial=0 (statistics for each element) is not supported")
    operands = [node.input(i) for i in range(5)]
    x = operands[0]
    parameters = [ctx.cast(v, x.dtype) for v in operands[1:]]
    return ctx.op("batch_norm", x, *parameters, epsilon=node.real("epsilon", 1e-5))


@converter("InstanceNormalization")
def instance_norm(ctx: Context, node: OnnxNode) -> Value:
    x, scale, bias = node.input(0), node.input(1), node.input(2)
    groups = static_dim(x, 1, "its number of channels")
    return ctx.op("group_norm", x, scale, bias, groups=groups, epsilon=node.real("epsilon", 1e-5))


@converter("GroupNormalization", since=18)
def group_norm_by_group(ctx: Context, node: OnnxNode) -> Value:
    """Opset 18 to 20: scale and bias have one element for each group; repeat them for each channel."""
    x, groups = node.input(0), node.integer("num_groups")
    size = static_dim(x, 1, "its number of channels") // groups

    def per_channel(value: Value) -> Value:
        spread = ctx.broadcast_to(ctx.reshape(value, (groups, 1)), (groups, size))
        return ctx.reshape(spread, (groups * size,))

    scale, bias = per_channel(node.input(1)), per_channel(node.input(2))
    return ctx.op("group_norm", x, scale, bias, groups=groups, epsilon=node.real("epsilon", 1e-5))


@converter("GroupNormalization", since=21)
def group_norm(ctx: Context, node: OnnxNode) -> Value:
    x, scale, bias = node.input(0), node.input(1), node.input(2)
    groups = node.integer("num_groups")
    return ctx.op("group_norm", x, scale, bias, groups=groups, epsilon=node.real("epsilon", 1e-5))


@converter("LayerNormalization")
def layer_norm(ctx: Context, node: OnnxNode) -> list[Value]:
    x = node.input(0)
    axis = normalise_axis(node.integer("axis", -1), x)
    epsilon = node.real("epsilon", 1e-5)
    operands = [ctx.broadcast_to(node.input(1), x.shape[axis:])]
    bias = node.optional(2)
    if bias is not None:
        operands.append(ctx.broadcast_to(bias, x.shape[axis:]))
    result = ctx.op("layer_norm", x, *operands, axis=axis, epsilon=epsilon)
    if not (node.uses_output(1) or node.uses_output(2)):
        return [result]
    return [result, *_mean_and_inverse_deviation(ctx, x, axis, epsilon)]


def _mean_and_inverse_deviation(ctx: Context, x: Value, axis: int, epsilon: float) -> tuple[Value, Value]:
    axes = tuple(range(axis, x.type.rank))
    x = ctx.cast(x, "float32") if x.dtype in ("float16", "bfloat16") else x
    mean = ctx.op("reduce_mean", x, axes=axes)
    centred = ctx.op("sub", x, mean)
    variance = ctx.op("reduce_mean", ctx.op("mul", centred, centred), axes=axes)
    return mean, ctx.op("rsqrt", ctx.op("add", variance, ctx.constant(epsilon, x.dtype)))


@converter("RMSNormalization")
def rms_norm(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    axis = normalise_axis(node.integer("axis", -1), x)
    scale = ctx.broadcast_to(ctx.cast(node.input(1), x.dtype), x.shape[axis:])
    return ctx.op("rms_norm", x, scale, axis=axis, epsilon=node.real("epsilon", 1e-5))


@converter("LRN")
def local_response_norm(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op(
        "lrn",
        node.input(0),
        size=node.integer("size"),
        alpha=node.real("alpha", 1e-4),
        beta=node.real("beta", 0.75),
        bias=node.real("bias", 1.0),
    )


@converter("MeanVarianceNormalization")
def mean_variance_norm(ctx: Context, node: OnnxNode) -> Value:
    """(x - mean) / (sqrt(variance) + 1e-9) over `axes`."""
    x = node.input(0)
    axes = normalise_axes(node.integers("axes", (0, 2, 3)), x)
    centred = ctx.op("sub", x, ctx.op("reduce_mean", x, axes=axes))
    variance = ctx.op("reduce_mean", ctx.op("mul", centred, centred), axes=axes)
    deviation = ctx.op("add", ctx.op("sqrt", variance), ctx.constant(1e-9, x.dtype))
    return ctx.op("div", centred, deviation)


@converter("LpNormalization")
def lp_norm(ctx: Context, node: OnnxNode) -> Value:
    """x / ||x||_p along one axis; a zero vector stays zero."""
    x = node.input(0)
    axes = (normalise_axis(node.integer("axis", -1), x),)
    if node.integer("p", 2) == 1:
        norm = ctx.op("reduce_sum", ctx.op("abs", x), axes=axes)
    else:
        norm = ctx.op("sqrt", ctx.op("reduce_sum", ctx.op("mul", x, x), axes=axes))
    is_zero = ctx.op("equal", norm, ctx.constant(np.zeros(()), x.dtype))
    return ctx.op("div", x, ctx.op("where", is_zero, ctx.constant(1, x.dtype), norm))
