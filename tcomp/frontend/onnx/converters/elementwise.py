"""Elementwise arithmetic, comparison, logic, conversion."""

from __future__ import annotations

from functools import reduce

import numpy as np

from tcomp.errors import UnsupportedError
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import Converter, converter
from tcomp.frontend.onnx.float8 import cast_to
from tcomp.frontend.onnx.tensors import dtype_of
from tcomp.relay.graph import Constant, Value
from tcomp.relay.types import FLOATS, INTEGERS

_UNARY = {
    "Abs": "abs", "Neg": "neg", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal",
    "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan",
    "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh",
    "Erf": "erf", "Ceil": "ceil", "Floor": "floor", "Round": "round", "Sign": "sign", "IsNaN": "is_nan",
    "Not": "logical_not", "BitwiseNot": "bitwise_not",
}  # fmt: skip

_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Equal": "equal", "Less": "less",
    "LessOrEqual": "less_equal", "Greater": "greater", "GreaterOrEqual": "greater_equal",
    "And": "logical_and", "Or": "logical_or", "Xor": "logical_xor", "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor", "PRelu": "prelu",
}  # fmt: skip

_VARIADIC = {"Sum": "add", "Max": "maximum", "Min": "minimum"}


def _unary(op: str) -> Converter:
    return lambda ctx, node: ctx.op(op, node.input(0))


def _binary(op: str) -> Converter:
    return lambda ctx, node: ctx.op(op, node.input(0), node.input(1))


def _variadic(op: str) -> Converter:
    return lambda ctx, node: reduce(lambda a, b: ctx.op(op, a, b), node.all_inputs())


for _onnx_name, _name in _UNARY.items():
    converter(_onnx_name)(_unary(_name))
for _onnx_name, _name in _BINARY.items():
    converter(_onnx_name)(_binary(_name))
for _onnx_name, _name in _VARIADIC.items():
    converter(_onnx_name)(_variadic(_name))


@converter("Mean")
def mean(ctx: Context, node: OnnxNode) -> Value:
    values = node.all_inputs()
    total = reduce(lambda a, b: ctx.op("add", a, b), values)
    return ctx.op("div", total, ctx.constant(len(values), total.dtype))


@converter("Pow")
def power(ctx: Context, node: OnnxNode) -> Value:
    """The result has the base's type; a float exponent of an integer base is computed in float."""
    base, exponent = node.input(0), node.input(1)
    if base.dtype in INTEGERS and exponent.dtype in FLOATS:
        result = ctx.op("pow", ctx.cast(base, exponent.dtype), exponent)
        return ctx.cast(result, base.dtype)
    return ctx.op("pow", base, ctx.cast(exponent, base.dtype))


@converter("Mod")
def modulo(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op("mod", node.input(0), node.input(1), fmod=bool(node.integer("fmod", 0)))


@converter("BitShift")
def bit_shift(ctx: Context, node: OnnxNode) -> Value:
    op = "shift_left" if node.text("direction") == "LEFT" else "shift_right"
    return ctx.op(op, node.input(0), node.input(1))


@converter("IsInf")
def is_infinite(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op(
        "is_inf",
        node.input(0),
        detect_negative=bool(node.integer("detect_negative", 1)),
        detect_positive=bool(node.integer("detect_positive", 1)),
    )


@converter("Where")
def where(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op("where", node.input(0), node.input(1), node.input(2))


@converter("Clip")
def clip_by_attributes(ctx: Context, node: OnnxNode) -> Value:
    low = node.real("min") if "min" in node.attrs else None
    high = node.real("max") if "max" in node.attrs else None
    return ctx.op("clip", node.input(0), min=low, max=high)


@converter("Clip", since=11)
def clip(ctx: Context, node: OnnxNode) -> Value:
    """Bounds known now become attributes; others are applied by maximum and minimum."""
    x, low, high = node.input(0), node.optional(1), node.optional(2)
    if all(bound is None or isinstance(bound, Constant) for bound in (low, high)):
        return ctx.op("clip", x, min=_number(low), max=_number(high))
    x = x if low is None else ctx.op("maximum", x, low)
    return x if high is None else ctx.op("minimum", x, high)


def _number(bound: Value | None) -> int | float | None:
    """The bound as a Python number of the same kind (integers stay exact)."""
    if not isinstance(bound, Constant):
        return None
    number = bound.data.reshape(-1)[0].item()
    return number if isinstance(number, int) else float(number)


@converter("Cast")
def cast(ctx: Context, node: OnnxNode) -> Value:
    return cast_to(ctx, node, node.input(0), dtype_of(node.integer("to"), "the result of this Cast"))


@converter("CastLike")
def cast_like(ctx: Context, node: OnnxNode) -> Value:
    return cast_to(ctx, node, node.input(0), node.input(1).dtype)


@converter("Identity")
def identity(ctx: Context, node: OnnxNode) -> Value:
    return node.input(0)


@converter("Dropout")
def dropout(ctx: Context, node: OnnxNode) -> list[Value]:
    """Inference: the input itself. The mask, when asked for, is all true."""
    x, training = node.input(0), node.optional(2)
    if training is not None and bool(ctx.array(training, "training_mode").any()):
        ratio = node.optional(1)
        if ratio is None or bool(ctx.array(ratio, "ratio").any()):
            raise UnsupportedError("it is in training mode; export the model for inference")
    if not node.uses_output(1):
        return [x]
    return [x, ctx.broadcast_to(ctx.constant(np.array(True)), x.shape)]
