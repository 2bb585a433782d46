# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
"""Activation functions: each one elementwise operator, so that it stays one step of an epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt

import numpy as np
import numpy.typing as npt

from tcomp.errors import TypeRuleError
from tcomp.ops.elementwise import erf_reference, zero_of
from tcomp.ops.pointwise import NUMBERS, Expression, Pointwise, declare_pointwise, pointwise
from tcomp.ops.shapes import accumulator, broadcast_shapes, same_dtype
from tcomp.relay.graph import Attrs
from tcomp.relay.op import FusionKind, LayoutRule, Op, Sample, declare
from tcomp.relay.types import Array, TensorType
from tcomp.tensor import math
from tcomp.tvm_api import Tensor, tirx

_GELU_TANH = sqrt(2 / pi)
_GELU_CUBE = 0.044715


def _relu(x: Expression) -> Expression:
    return tirx.max(zero_of(x), x)  # in this order NaN stays NaN


def _softplus_reference(x: Array) -> npt.ArrayLike:
    return np.logaddexp(x, x.dtype.type(0))


def _softplus(x: Expression) -> Expression:
    return tirx.max(zero_of(x), x) + math.log_(math.exp(-tirx.abs(x)) + 1)


def _gelu_reference(x: Array, approximate: str) -> npt.ArrayLike:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(_GELU_TANH * (x + _GELU_CUBE * x**3)))
    return 0.5 * x * (1 + erf_reference(x / sqrt(2)))


def _gelu(x: Expression, approximate: str) -> Expression:
    if approximate == "tanh":
        # 0.5 * (1 + tanh(u)) is sigmoid(2u)
        inner = x * (x * x * (2 * _GELU_TANH * _GELU_CUBE) + 2 * _GELU_TANH)
        return x * math.sigmoid(inner)
    half = x * 0.5
    return half + half * math.erf(x * (1 / sqrt(2)))


def _sigmoid_reference(x: Array) -> npt.ArrayLike:
    return 1 / (1 + np.exp(-x))


def _mish_reference(x: Array) -> npt.ArrayLike:
    return x * np.tanh(np.logaddexp(x, x.dtype.type(0)))


def _mish(x: Expression) -> Expression:
    # tanh(log(1 + e)) = (e^2 + 2e) / (e^2 + 2e + 2); above 20 it rounds to 1
    e = math.exp(tirx.min(tirx.const(20.0, math.dtype_of(x)), x))
    numerator = e * (e + 2)
    return x * (numerator / (numerator + 2))


def _hard_sigmoid_reference(x: Array, alpha: float, beta: float) -> npt.ArrayLike:
    return np.clip(alpha * x + beta, 0, 1)


def _hard_sigmoid(x: Expression, alpha: float, beta: float) -> Expression:
    one = tirx.const(1, math.dtype_of(x))
    return tirx.min(one, tirx.max(zero_of(x), x * alpha + beta))


def _elu_reference(x: Array, alpha: float) -> npt.ArrayLike:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _elu(x: Expression, alpha: float) -> Expression:
    return tirx.Select(x > zero_of(x), x, math.expm1(x) * alpha)


def _selu_reference(x: Array, alpha: float, gamma: float) -> npt.ArrayLike:
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _selu(x: Expression, alpha: float, gamma: float) -> Expression:
    return tirx.Select(x > zero_of(x), x * gamma, math.expm1(x) * (alpha * gamma))


def _celu_reference(x: Array, alpha: float) -> npt.ArrayLike:
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _celu(x: Expression, alpha: float) -> Expression:
    return tirx.Select(x > zero_of(x), x, math.expm1(x * (1 / alpha)) * alpha)


def _leaky_relu(x: Expression, alpha: float) -> Expression:
    return tirx.Select(x < zero_of(x), x * alpha, x)


def _threshold(x: Expression, alpha: float) -> Expression:
    return tirx.Select(x > tirx.const(alpha, math.dtype_of(x)), x, zero_of(x))


for _row in (
    Pointwise("relu", lambda x: np.maximum(x, 0), _relu, NUMBERS),
    Pointwise("sigmoid", _sigmoid_reference, math.sigmoid, flops=16, low=-6, high=6),
    Pointwise("softplus", _softplus_reference, _softplus, flops=30, low=-6, high=6),
    Pointwise("softsign", lambda x: x / (1 + np.abs(x)), lambda x: x / (tirx.abs(x) + 1), flops=6),
    Pointwise(
        "gelu",
        _gelu_reference,
        _gelu,
        attrs={"approximate": "none"},
        flops=28,
        samples=(
            Sample((TensorType((3, 37)),), low=-6, high=6),
            Sample((TensorType((3, 37)),), {"approximate": "tanh"}, low=-6, high=6),
            Sample((TensorType((2, 64), "bfloat16"),), low=-3, high=3, rtol=1e-2, atol=1e-2),
        ),
    ),
    Pointwise("silu", lambda x: x * _sigmoid_reference(x), lambda x: x * math.sigmoid(x), flops=17),
    Pointwise("mish", _mish_reference, _mish, flops=24, low=-6, high=30),
    Pointwise(
        "hard_sigmoid",
        _hard_sigmoid_reference,
        _hard_sigmoid,
        attrs={"alpha": 0.2, "beta": 0.5},
        flops=4,
        low=-4,
        high=4,
    ),
    Pointwise(
        "hard_swish",
        lambda x: x * _hard_sigmoid_reference(x, 1 / 6, 0.5),
        lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5),
        flops=5,
        low=-4,
        high=4,
    ),
    Pointwise("elu", _elu_reference, _elu, attrs={"alpha": 1.0}, flops=16),
    Pointwise(
        "selu",
        _selu_reference,
        _selu,
        attrs={"alpha": 1.6732632423543772, "gamma": 1.0507009873554805},
        flops=17,
    ),
    Pointwise("celu", _celu_reference, _celu, attrs={"alpha": 1.0}, flops=17),
    Pointwise(
        "leaky_relu",
        lambda x, alpha: np.where(x < 0, alpha * x, x),
        _leaky_relu,
        attrs={"alpha": 0.01},
        flops=2,
    ),
    Pointwise(
        "thresholded_relu", lambda x, alpha: np.where(x > alpha, x, 0), _threshold, attrs={"alpha": 1.0}
    ),
):
    declare_pointwise(_row)


def _infer_prelu(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, slope = types
    dtype = same_dtype("prelu", types)
    if broadcast_shapes(x.shape, slope.shape) != x.shape:
        raise TypeRuleError(f"`prelu`: slope {slope} does not broadcast to {x}")
    return [TensorType(x.shape, dtype)]


def _evaluate_prelu(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, slope = (a.astype(accumulator(a.dtype.name), copy=False) for a in arrays)
    return [np.where(x < 0, slope * x, x).astype(arrays[0].dtype)]


def _compute_prelu(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    wide = accumulator(outputs[0].dtype)

    def element(x: Expression, slope: Expression) -> Expression:
        x, slope = x.astype(wide), slope.astype(wide)
        return tirx.Select(x < zero_of(x), x * slope, x)

    return [pointwise("prelu", inputs, outputs[0], element)]


declare(
    Op(
        name="prelu",
        infer=_infer_prelu,
        evaluate=_evaluate_prelu,
        compute=_compute_prelu,
        kind=FusionKind.ELEMENTWISE,
        arity=(2, 2),
        layout=LayoutRule.ELEMENTWISE,
        zero_is_finite=True,
        flops_per_element=2,
        samples=(
            Sample((TensorType((2, 3, 5, 7)), TensorType((3, 1, 1)))),
            Sample((TensorType((2, 33)), TensorType((1,)))),
        ),
    )
)
