"""Activation functions and softmax."""

from __future__ import annotations

from tcomp.frontend.onnx.axes import normalise_axis, trailing_size
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import Converter, converter
from tcomp.relay.dims import product
from tcomp.relay.graph import Value

_PARAMETERS: dict[str, tuple[str, dict[str, float]]] = {
    "Relu": ("relu", {}),
    "Sigmoid": ("sigmoid", {}),
    "Softplus": ("softplus", {}),
    "Softsign": ("softsign", {}),
    "Mish": ("mish", {}),
    "HardSwish": ("hard_swish", {}),
    "HardSigmoid": ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),
    "Elu": ("elu", {"alpha": 1.0}),
    "Selu": ("selu", {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}),
    "Celu": ("celu", {"alpha": 1.0}),
    "LeakyRelu": ("leaky_relu", {"alpha": 0.01}),
    "ThresholdedRelu": ("thresholded_relu", {"alpha": 1.0}),
}
"""ONNX operator -> Relay operator and ONNX's defaults of its real attributes."""


def _activation(op: str, defaults: dict[str, float]) -> Converter:
    def convert(ctx: Context, node: OnnxNode) -> Value:
        attrs = {name: node.real(name, default) for name, default in defaults.items()}
        return ctx.op(op, node.input(0), **attrs)

    return convert


for _onnx_name, (_name, _defaults) in _PARAMETERS.items():
    converter(_onnx_name)(_activation(_name, _defaults))


@converter("Gelu")
def gelu(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op("gelu", node.input(0), approximate=node.text("approximate", "none"))


@converter("Swish")
def swish(ctx: Context, node: OnnxNode) -> Value:
    x, alpha = node.input(0), node.real("alpha", 1.0)
    if alpha == 1.0:
        return ctx.op("silu", x)
    return ctx.op("mul", x, ctx.op("sigmoid", ctx.op("mul", x, ctx.constant(alpha, x.dtype))))


@converter("Shrink")
def shrink(ctx: Context, node: OnnxNode) -> Value:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    x, bias = node.input(0), ctx.constant(node.real("bias", 0.0), node.input(0).dtype)
    threshold = node.real("lambd", 0.5)
    below = ctx.op("less", x, ctx.constant(-threshold, x.dtype))
    above = ctx.op("greater", x, ctx.constant(threshold, x.dtype))
    upper = ctx.op("where", above, ctx.op("sub", x, bias), ctx.constant(0, x.dtype))
    return ctx.op("where", below, ctx.op("add", x, bias), upper)


@converter("Softmax", "LogSoftmax", since=13)
def softmax(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    return ctx.op(_softmax_op(node), x, axis=normalise_axis(node.integer("axis", -1), x))


@converter("Softmax", "LogSoftmax")
def softmax_flattened(ctx: Context, node: OnnxNode) -> Value:
    """Before opset 13: the dimensions from `axis` on are one."""
    x = node.input(0)
    axis = normalise_axis(node.integer("axis", 1), x)
    if trailing_size(x, axis + 1) == 1:
        return ctx.op(_softmax_op(node), x, axis=axis)
    rows = ctx.reshape(x, (*x.shape[:axis], product(x.shape[axis:])))
    return ctx.reshape(ctx.op(_softmax_op(node), rows, axis=axis), x.shape)


def _softmax_op(node: OnnxNode) -> str:
    return "softmax" if node.op_type == "Softmax" else "log_softmax"


@converter("Hardmax", since=13)
def hardmax(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    return _hardmax(ctx, x, normalise_axis(node.integer("axis", -1), x))


@converter("Hardmax")
def hardmax_flattened(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    axis = normalise_axis(node.integer("axis", 1), x)
    rows = ctx.reshape(x, (*x.shape[:axis], product(x.shape[axis:])))
    return ctx.reshape(_hardmax(ctx, rows, axis), x.shape)


def _hardmax(ctx: Context, x: Value, axis: int) -> Value:
    """1 at the first largest element along `axis`, 0 elsewhere."""
    largest = ctx.op("argmax", x, axis=axis, keepdims=False)
    depth = x.shape[axis]
    return ctx.op("one_hot", largest, ctx.constant([0, 1], x.dtype), depth=depth, axis=axis)
