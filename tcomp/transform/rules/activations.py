"""Activations that exporters spell out in small operators.

Sources of the spellings: both PyTorch exporters (opset 17 to 20), TensorFlow's converter, Paddle's.
"""

from __future__ import annotations

from math import pi, sqrt

from tcomp.relay.attributes import number
from tcomp.relay.graph import Value
from tcomp.relay.pattern import Pattern, constant, either, op, operand
from tcomp.relay.rewrite import Build, Match, Rule
from tcomp.relay.types import FLOATS
from tcomp.transform.rules.common import scalar_of

_X, _INNER = operand("x"), operand("inner")


def _value(value: float) -> Pattern:
    return constant(value=value)


def _unary(name: str, **attrs: str | float) -> Build:
    """Build function: the root becomes `name` of x."""

    def build(match: Match) -> Value | None:
        if match["x"].type != match.type or match.type.dtype not in FLOATS:
            return None
        return match.op(name, match["x"], **attrs)

    return build


def _times(*factors: Pattern) -> Pattern:
    """A product of three factors, however they are grouped."""
    a, b, c = factors
    return either(op("mul", op("mul", a, b), c), op("mul", op("mul", a, c), b), op("mul", op("mul", b, c), a))


_SCALED = either(op("mul", _X, _value(1 / sqrt(2))), op("div", _X, _value(sqrt(2))))
_ONE_PLUS_ERF = op("add", op("erf", _SCALED), _value(1))
_HALF = _value(0.5)
# 0.5 * (1 + erf(x / sqrt 2)): with the half inside the sum, as TensorFlow writes it, too.
_HALVED_ERF = either(op("mul", _ONE_PLUS_ERF, _HALF), op("add", op("mul", op("erf", _SCALED), _HALF), _HALF))

_CUBE = either(op("pow", _X, _value(3)), op("mul", op("mul", _X, _X), _X))
_SUM = either(
    op("add", _X, op("mul", _CUBE, _value(0.044715))),
    op("add", _X, op("mul", op("mul", _X, _X), op("mul", _X, _value(0.044715)))),
    op("mul", _X, op("add", op("mul", op("mul", _X, _X), _value(0.044715)), _value(1))),
    op("add", _X, op("mul", op("mul", op("mul", _X, _value(0.044715)), _X), _X)),
)
_ONE_PLUS_TANH = op("add", op("tanh", op("mul", _SUM, _value(sqrt(2 / pi)))), _value(1))

GELU = (
    Rule("gelu-erf", _times(_X, _ONE_PLUS_ERF, _HALF), _unary("gelu")),
    Rule("gelu-erf", op("mul", _X, _HALVED_ERF), _unary("gelu")),
    Rule("gelu-tanh", _times(_X, _ONE_PLUS_TANH, _HALF), _unary("gelu", approximate="tanh")),
    Rule("gelu-tanh", op("mul", _X, op("mul", _ONE_PLUS_TANH, _HALF)), _unary("gelu", approximate="tanh")),
)


def _hard_sigmoid(match: Match) -> Value | None:
    """clip(a x + b, 0, 1)"""
    a, b = scalar_of(match["a"]), scalar_of(match["b"])
    if a is None or b is None or match["x"].type != match.type:
        return None
    return match.op("hard_sigmoid", match["x"], alpha=a, beta=b)


def _hard_sigmoid_of_six(match: Match) -> Value | None:
    """clip(x + 3, 0, 6) / 6"""
    return _unary("hard_sigmoid", alpha=1 / 6, beta=0.5)(match)


def _hard_swish(match: Match) -> Value | None:
    attrs = match.node("gate").attrs
    if abs(number(attrs, "alpha") - 1 / 6) > 1e-4 or abs(number(attrs, "beta") - 0.5) > 1e-6:
        return None
    return _unary("hard_swish")(match)


_SIX = op("clip", op("add", _X, _value(3)), min=0, max=6)
_SIXTH = _value(1 / 6)
_SIGMOID = op("sigmoid", _X)
_SOFTPLUS = op("softplus", _X)
_EXP_NEG = op("add", op("exp", op("neg", _X)), _value(1))
_ZERO_TO_ONE = op("clip", op("add", op("mul", _X, constant("a")), constant("b")), min=0, max=1)

GATES = (
    Rule("sigmoid", op("reciprocal", _EXP_NEG), _unary("sigmoid")),
    Rule("sigmoid", op("div", _value(1), _EXP_NEG), _unary("sigmoid")),
    Rule("softplus", op("log", op("add", op("exp", _X), _value(1))), _unary("softplus")),
    Rule("silu", op("mul", _X, _SIGMOID), _unary("silu")),
    Rule("silu", op("div", _X, _EXP_NEG), _unary("silu")),
    Rule("mish", op("mul", _X, op("tanh", _SOFTPLUS)), _unary("mish")),
    Rule("hard-sigmoid", _ZERO_TO_ONE, _hard_sigmoid),
    Rule("hard-sigmoid", op("mul", _SIX, _SIXTH), _hard_sigmoid_of_six),
    Rule("hard-sigmoid", op("div", _SIX, _value(6)), _hard_sigmoid_of_six),
    Rule("hard-swish", op("mul", op("mul", _X, _SIX), _SIXTH), _unary("hard_swish")),
    Rule("hard-swish", op("mul", op("mul", _X, _SIXTH), _SIX), _unary("hard_swish")),
    Rule("hard-swish", op("div", op("mul", _X, _SIX), _value(6)), _unary("hard_swish")),
    Rule("hard-swish", op("mul", _X, op("hard_sigmoid", _X, name="gate")), _hard_swish),
)
ACTIVATIONS = (*GELU, *GATES)
