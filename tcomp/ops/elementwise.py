# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
"""Arithmetic, transcendental, bitwise and conversion operators, elementwise with numpy broadcasting."""

from __future__ import annotations

from math import erf

import numpy as np
import numpy.typing as npt

from tcomp.ops.pointwise import ANY, NUMBERS, SIGNED, Expression, Pointwise, declare_pointwise
from tcomp.relay.op import REQUIRED, Sample
from tcomp.relay.types import FLOAT8, INTEGERS, Array, TensorType, numpy_dtype
from tcomp.tensor import math
from tcomp.tvm_api import tirx

_erf_of_doubles = np.frompyfunc(erf, 1, 1)


def erf_reference(x: Array) -> Array:
    """erf of each element, in double precision."""
    return np.asarray(_erf_of_doubles(x.astype(np.float64))).astype(x.dtype)


def is_float(x: Expression) -> bool:
    return "float" in math.dtype_of(x)


def zero_of(x: Expression) -> Expression:
    return tirx.const(0, math.dtype_of(x))


def _sign(x: Expression) -> Expression:
    zero, one = zero_of(x), tirx.const(1, math.dtype_of(x))
    nonzero = tirx.Select(x > zero, one, tirx.Select(x < zero, tirx.const(-1, math.dtype_of(x)), zero))
    return tirx.Select(math.is_nan(x), x, nonzero) if is_float(x) else nonzero


_NAN = np.array([[np.nan, 1, np.nan, np.inf, -np.inf, 2]], np.float32)
_NAN_SAMPLE = Sample((TensorType((1, 6)),) * 2, inputs={0: _NAN, 1: _NAN[:, ::-1].copy()})

for _row in (
    Pointwise("abs", np.abs, tirx.abs, SIGNED),
    Pointwise("neg", np.negative, lambda x: -x, SIGNED),
    Pointwise("sign", np.sign, _sign, SIGNED),
    Pointwise("ceil", np.ceil, tirx.ceil, low=-4, high=4),
    Pointwise("floor", np.floor, tirx.floor, low=-4, high=4),
    Pointwise("round", np.round, tirx.nearbyint, low=-4, high=4),
    Pointwise("sqrt", np.sqrt, tirx.sqrt, flops=4, low=0, high=4),
    Pointwise(
        "rsqrt",
        lambda x: 1 / np.sqrt(x),
        lambda x: 1 / tirx.sqrt(x),
        zero_is_finite=False,
        flops=8,
        low=0.1,
        high=4,
    ),
    Pointwise("reciprocal", lambda x: 1 / x, lambda x: 1 / x, zero_is_finite=False, flops=4, low=0.5, high=4),
    Pointwise("exp", np.exp, math.exp, flops=12, low=-4, high=4),
    Pointwise("log", np.log, math.log_, zero_is_finite=False, flops=16, low=0.01, high=8),
    Pointwise("sin", np.sin, math.sin, flops=14, low=-8, high=8),
    Pointwise("cos", np.cos, math.cos, flops=14, low=-8, high=8),
    Pointwise("tan", np.tan, math.tan, flops=32, low=-1.5, high=1.5),
    Pointwise("asin", np.arcsin, math.asin, flops=20, low=-1, high=1),
    Pointwise("acos", np.arccos, math.acos, flops=20, low=-1, high=1),
    Pointwise("atan", np.arctan, math.atan, flops=20, low=-4, high=4),
    Pointwise("sinh", np.sinh, math.sinh, flops=30, low=-4, high=4),
    Pointwise("cosh", np.cosh, math.cosh, flops=30, low=-4, high=4),
    Pointwise("tanh", np.tanh, math.tanh, flops=16, low=-4, high=4),
    Pointwise("asinh", np.arcsinh, math.asinh, flops=30, low=-4, high=4),
    Pointwise("acosh", np.arccosh, math.acosh, zero_is_finite=False, flops=30, low=1, high=4),
    Pointwise("atanh", np.arctanh, math.atanh, flops=30, low=-0.9, high=0.9),
    Pointwise("erf", erf_reference, math.erf, flops=24, low=-4, high=4),
    Pointwise("bitwise_not", np.invert, tirx.bitwise_not, INTEGERS, low=-100, high=100),
):
    declare_pointwise(_row)


def divide_reference(a: Array, b: Array) -> npt.ArrayLike:
    """True division of floats; integers truncate toward zero as in C."""
    if a.dtype.kind == "f":
        return a / b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


def _divide(a: Expression, b: Expression) -> Expression:
    return a / b if is_float(a) else tirx.truncdiv(a, b)


def _modulo_reference(a: Array, b: Array, fmod: bool) -> npt.ArrayLike:
    return np.fmod(a, b) if fmod else np.mod(a, b)


def _modulo(a: Expression, b: Expression, fmod: bool) -> Expression:
    if not is_float(a):
        return tirx.truncmod(a, b) if fmod else tirx.floormod(a, b)
    remainder = math.fmod(a, b)
    if fmod:
        return remainder
    zero = zero_of(a)
    return tirx.Select(remainder * b < zero, remainder + b, remainder)


def _power_reference(a: Array, b: Array) -> npt.ArrayLike:
    if a.dtype.kind == "f":
        return np.power(a, b)
    return np.power(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype)


def _power(a: Expression, b: Expression) -> Expression:
    if is_float(a):
        return math.power(a, b)
    return tirx.pow(a.astype("float64"), b.astype("float64"))


def _integers(low: float, high: float, **attrs: bool) -> Sample:
    """int32 operands of both signs, the divisors given to avoid zero."""
    divisors = np.array([[3, -3, 7, -1, 5]], "int32")
    types = (TensorType((4, 5), "int32"), TensorType((1, 5), "int32"))
    return Sample(types, attrs, low, high, inputs={1: divisors}, rtol=0, atol=0)


def _floats(dtype: str, low: float, high: float, tolerance: float, **attrs: bool) -> Sample:
    types = (TensorType((4, 5), dtype), TensorType((5,), dtype))
    return Sample(types, attrs, low, high, rtol=tolerance, atol=tolerance)


for _row in (
    Pointwise("add", np.add, lambda a, b: a + b, NUMBERS, 2, commutative=True),
    Pointwise("sub", np.subtract, lambda a, b: a - b, NUMBERS, 2),
    Pointwise("mul", np.multiply, lambda a, b: a * b, NUMBERS, 2, commutative=True),
    Pointwise(
        "div",
        divide_reference,
        _divide,
        NUMBERS,
        2,
        zero_is_finite=False,
        flops=4,
        samples=(_floats("float32", 1, 9, 1e-6), _floats("float16", 1, 9, 1e-3), _integers(-20, 20)),
    ),
    Pointwise(
        "mod",
        _modulo_reference,
        _modulo,
        NUMBERS,
        2,
        attrs={"fmod": False},
        zero_is_finite=False,
        flops=8,
        samples=(
            _floats("float32", -9, 9, 1e-5, fmod=True),
            _floats("float32", -9, 9, 1e-5, fmod=False),
            _integers(-20, 20, fmod=True),
            _integers(-20, 20, fmod=False),
        ),
    ),
    Pointwise("pow", _power_reference, _power, NUMBERS, 2, flops=30, low=1, high=3),
    Pointwise("maximum", np.maximum, tirx.max, NUMBERS, 2, commutative=True, special=(_NAN_SAMPLE,)),
    Pointwise("minimum", np.minimum, tirx.min, NUMBERS, 2, commutative=True, special=(_NAN_SAMPLE,)),
    Pointwise("bitwise_and", np.bitwise_and, tirx.bitwise_and, INTEGERS, 2, commutative=True, high=99),
    Pointwise("bitwise_or", np.bitwise_or, tirx.bitwise_or, INTEGERS, 2, commutative=True, high=99),
    Pointwise("bitwise_xor", np.bitwise_xor, tirx.bitwise_xor, INTEGERS, 2, commutative=True, high=99),
    Pointwise("shift_left", np.left_shift, tirx.shift_left, INTEGERS, 2, low=0, high=8),
    Pointwise("shift_right", np.right_shift, tirx.shift_right, INTEGERS, 2, low=0, high=8),
):
    declare_pointwise(_row)


def _cast_reference(x: Array, dtype: str) -> npt.ArrayLike:
    return x != 0 if dtype == "bool" else x.astype(numpy_dtype(dtype))


def _cast(x: Expression, dtype: str) -> Expression:
    if math.dtype_of(x) == dtype:
        return x
    if math.dtype_of(x) == "bool":
        # TVM's interval analysis stops at a vector of comparisons unless it is a condition.
        return tirx.Select(x, tirx.const(1, dtype), tirx.const(0, dtype))
    if dtype == "bool":
        x = x.astype("float32") if math.dtype_of(x) in FLOAT8 else x
        return x != zero_of(x)
    return x.astype(dtype)


def _cast_sample(source: str, dtype: str) -> Sample:
    return Sample((TensorType((3, 21), source),), {"dtype": dtype}, -3.7, 3.7, rtol=0, atol=0)


_CASTS = (
    ("float32", "int64"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("bfloat16", "float32"),
    ("float16", "float32"),
    ("float32", "bool"),
    ("bool", "float32"),
    ("int64", "float32"),
    ("int32", "int8"),
    ("float64", "float32"),
    ("float32", "float8_e4m3fn"),
    ("float8_e4m3fn", "float32"),
    ("float16", "float8_e5m2"),
    ("float8_e5m2", "float16"),
    ("bfloat16", "float8_e4m3fn"),
    ("float8_e5m2", "bfloat16"),
    ("float8_e4m3fn", "float8_e5m2"),
    ("int32", "float8_e5m2"),
    ("float8_e4m3fn", "bool"),
)
declare_pointwise(
    Pointwise(
        "cast",
        _cast_reference,
        _cast,
        ANY + FLOAT8,
        result="@dtype",
        attrs={"dtype": REQUIRED},
        samples=tuple(_cast_sample(source, dtype) for source, dtype in _CASTS),
        wide=False,
    )
)


def _clip_reference(x: Array, **bounds: float | None) -> npt.ArrayLike:
    low, high = bounds["min"], bounds["max"]
    x = x if low is None else np.maximum(x, x.dtype.type(low))
    return x if high is None else np.minimum(x, x.dtype.type(high))


def _clip(x: Expression, **bounds: float | None) -> Expression:
    low, high = bounds["min"], bounds["max"]
    x = x if low is None else tirx.max(tirx.const(low, math.dtype_of(x)), x)
    return x if high is None else tirx.min(tirx.const(high, math.dtype_of(x)), x)


declare_pointwise(
    Pointwise(
        "clip",
        _clip_reference,
        _clip,
        NUMBERS,
        attrs={"min": None, "max": None},
        flops=2,
        samples=(
            Sample((TensorType((3, 37)),), {"min": -0.5, "max": 1.0}),
            Sample((TensorType((3, 37)),), {"max": 6.0}, high=9.0),
            Sample((TensorType((9,), "int32"),), {"min": 2, "max": 5}, 0, 9),
            Sample((TensorType((9,), "float16"),), {"min": -0.5}),
        ),
    )
)
