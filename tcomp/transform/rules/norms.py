"""Normalisations that exporters spell out in small operators."""

from __future__ import annotations

from tcomp.relay.attributes import integer, integers
from tcomp.relay.graph import Constant, Value
from tcomp.relay.pattern import Pattern, constant, either, op, operand
from tcomp.relay.rewrite import Match, Rule
from tcomp.relay.types import FLOATS
from tcomp.transform.rules.common import scalar_of

_X = operand("x")


def _trailing(match: Match, axes: tuple[int, ...]) -> int | None:
    """The first of `axes` when they are the last axes of x."""
    rank = match["x"].type.rank
    return min(axes) if sorted(axes) == list(range(min(axes), rank)) else None


def _ones(match: Match, axis: int) -> Value:
    shape = match["x"].shape[axis:]
    one = match.constant(1.0)
    return one if not shape else match.op("broadcast_to", one, shape=shape)


def _layer_norm(match: Match) -> Value | None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon), over trailing axes, keepdims."""
    axes = integers(match.node("mean").attrs, "axes")
    epsilon = scalar_of(match["epsilon"])
    if axes != integers(match.node("variance").attrs, "axes") or epsilon is None:
        return None
    axis = _trailing(match, axes)
    if axis is None or match["x"].type != match.type or match.type.dtype not in FLOATS:
        return None
    return match.op("layer_norm", match["x"], _ones(match, axis), axis=axis, epsilon=epsilon)


def _rms_norm(match: Match) -> Value | None:
    """x / sqrt(mean(x^2) + epsilon)"""
    axis, epsilon = (
        _trailing(match, integers(match.node("square").attrs, "axes")),
        scalar_of(match["epsilon"]),
    )
    if axis is None or epsilon is None or match["x"].type != match.type or match.type.dtype not in FLOATS:
        return None
    return match.op("rms_norm", match["x"], _ones(match, axis), axis=axis, epsilon=epsilon)


_MEAN = op("reduce_mean", _X, name="mean", keepdims=True)
# sub(x, mean); exporters may write it once or twice.
_CENTRED = op("sub", _X, _MEAN)
_SQUARED = either(op("pow", _CENTRED, constant(value=2)), op("mul", _CENTRED, _CENTRED))
_SPREAD = op("add", op("reduce_mean", _SQUARED, name="variance", keepdims=True), constant("epsilon"))
_SQUARE_X = either(op("pow", _X, constant(value=2)), op("mul", _X, _X))
_POWER = op("add", op("reduce_mean", _SQUARE_X, name="square", keepdims=True), constant("epsilon"))


def _divided(numerator: Pattern, spread: Pattern) -> tuple[Pattern, ...]:
    """The ways to write numerator / sqrt(spread)."""
    root = either(op("sqrt", spread), op("pow", spread, constant(value=0.5)))
    inverse = either(op("rsqrt", spread), op("reciprocal", root), op("pow", spread, constant(value=-0.5)))
    return op("div", numerator, root), op("mul", numerator, inverse)


def _unit_scale(match: Match) -> tuple[Value, tuple[Value, ...]] | None:
    """Operands of the bound norm when its scale is still 1: (x, rest behind the scale)."""
    node = match.node("norm")
    scale = match.editor.producer(node.inputs[1])
    source = scale.inputs[0] if scale is not None and scale.op == "broadcast_to" else node.inputs[1]
    if scalar_of(source) != 1:
        return None
    return node.inputs[0], node.inputs[2:]


def _fits_axes(match: Match, value: Value) -> Value | None:
    """A constant broadcast over the normalised axes, as a tensor of their shape."""
    axis = integer(match.node("norm").attrs, "axis")
    shape = match.type.shape[axis:]
    if not isinstance(value, Constant) or any(d != 1 for d in value.shape[: -len(shape)]):
        return None
    flat = match.constant(value.data.reshape(value.data.shape[-len(shape) :]))
    return flat if flat.shape == shape else match.op("broadcast_to", flat, shape=shape)


def _scale_norm(match: Match) -> Value | None:
    operands = _unit_scale(match)
    scale = _fits_axes(match, match["c"])
    if operands is None or operands[1] or scale is None or match["norm"].type != match.type:
        return None
    return match.op(match.node("norm").op, operands[0], scale, **match.node("norm").attrs)


def _shift_norm(match: Match) -> Value | None:
    node = match.node("norm")
    bias = _fits_axes(match, match["c"])
    if len(node.inputs) != 2 or bias is None or match["norm"].type != match.type:
        return None
    return match.op("layer_norm", *node.inputs, bias, **node.attrs)


_NORM_2 = op(("layer_norm", "rms_norm"), operand(), operand(), name="norm", uses=1)
NORMS = (
    *(Rule("layer-norm", p, _layer_norm) for p in _divided(_CENTRED, _SPREAD)),
    *(Rule("rms-norm", p, _rms_norm) for p in _divided(_X, _POWER)),
    Rule("norm-scale", op("mul", _NORM_2, constant("c")), _scale_norm),
    Rule(
        "norm-shift",
        op("add", op("layer_norm", operand(), operand(), name="norm", uses=1), constant("c")),
        _shift_norm,
    ),
)
