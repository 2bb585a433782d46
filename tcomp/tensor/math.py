"""Mathematical functions of one element, vectorised without calls.

Expressions hold one call of an intrinsic (`tirx.exp`, ...) as long as schedules work on them; the call
becomes a polynomial in float32 when TVM lowers intrinsics, at whatever vector width the schedule chose, and
on GPUs a call of CUDA's function. float64 keeps the C library's functions. Coefficients are those of Cephes
(Moshier) and, for tanh and erf, the rational approximations of Eigen. Errors are stated for float32 in
units of the last place (ulp).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log, nan, pi
from typing import Any

import numpy as np

from tcomp.relay.types import numpy_dtype
from tcomp.tensor import bfloat16
from tcomp.tensor.intrinsics import call, dtype_of, register
from tcomp.tvm_api import tirx, tvm

Expression = Any
_LARGER = "larger"
_MAGIC = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to an integer, held in the low bits
_MAGIC_BITS = 0x4B400000
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOG2E_HIGH, _LOG2E_LOW = 1.4426950216293335, 1.92596298909109e-8
_EXP2_SERIES = (
    1.326472731307149e-3, 9.671512991189957e-3, 5.550733581185341e-2, 2.4022242426872253e-1,
    6.931470036506653e-1, 1.0,
)  # fmt: skip
"""2^r for |r| <= 1/2, highest power first."""


def convert(x: Expression, dtype: str) -> Expression:
    """x as `dtype`; bfloat16 is widened by a shift of its bits, and rounded to nearest even."""
    source = dtype_of(x)
    if source == "bfloat16" and dtype != "bfloat16":
        bits = bits_of_bfloat16(x).astype("uint32")
        wide = tirx.reinterpret("float32", tirx.shift_left(bits, tirx.const(16, "uint32")))
        return wide.astype(dtype)
    if dtype != "bfloat16" or source == dtype:
        return x.astype(dtype)
    return tirx.reinterpret("bfloat16", bfloat16.rounded(x.astype("float32")))


def bits_of_bfloat16(x: Expression) -> Expression:
    """The bits of `x`. Of one that was only just rounded they are what it was made of, since TVM vectorises
    no reinterpretation of a reinterpretation; of a choice they are the choice of bits, and of a constant its
    own, since TVM's legalisation makes both of them float32."""
    if isinstance(x, tirx.FloatImm):
        return tirx.const(int(np.array(x.value, numpy_dtype("bfloat16")).view(np.uint16)), "uint16")
    name = getattr(getattr(x, "op", None), "name", "")
    if name == "prim.if_then_else":
        condition, *values = x.args
        return tirx.if_then_else(condition, *map(bits_of_bfloat16, values))
    if isinstance(x, tirx.Select):
        return tirx.Select(x.condition, bits_of_bfloat16(x.true_value), bits_of_bfloat16(x.false_value))
    return x.args[0] if name == "tirx.reinterpret" else tirx.reinterpret("uint16", x)


def exp(x: Expression) -> Expression:
    """e^x within 2 ulp for every x, denormal results, infinities and NaN included."""
    return tirx.exp(x)


def exp2(x: Expression) -> Expression:
    """2^x within 3 ulp for x from -126 up to 127.5; 2^-126 for every x below. Half the work of `exp`."""
    return tirx.exp2(x)


def log_(x: Expression) -> Expression:
    """Natural logarithm within 2 ulp; -inf at zero, NaN below."""
    return tirx.log(x)


def tanh(x: Expression) -> Expression:
    """Hyperbolic tangent within 5 ulp."""
    return _call(tirx.tanh, "tanh", x)


def erf(x: Expression) -> Expression:
    """Error function, relative error below 4e-7."""
    return _call(tirx.erf, "erf", x)


def sin(x: Expression) -> Expression:
    """Sine with absolute error below 2e-7 for |x| below 1e8; NaN at infinity."""
    return tirx.sin(x)


def cos(x: Expression) -> Expression:
    """Cosine with absolute error below 2e-7 for |x| below 1e8; NaN at infinity."""
    return tirx.cos(x)


def tan(x: Expression) -> Expression:
    """Tangent, relative error below 1e-6 away from its poles."""
    return sin(x) / cos(x)


def sigmoid(x: Expression) -> Expression:
    """1 / (1 + e^-x) within 4 ulp for x above -87, below 1e-37 there."""
    return tirx.sigmoid(x) if dtype_of(x).startswith("float32") else 1 / (exp(-x) + 1)


def expm1(x: Expression) -> Expression:
    """e^x - 1 with absolute error below 1e-7 for x <= 0, relative below 2e-7 for |x| above 1."""
    return exp(x) - 1


def fmod(x: Expression, y: Expression) -> Expression:
    """The remainder of x / y with the sign of x, exact; a call of the C library."""
    return tirx.call_pure_extern(dtype_of(x), "fmod" if _is_double(x) else "fmodf", x, y)


def is_nan(x: Expression) -> Expression:
    """Whether x is NaN, by its bits: TVM takes `x != x` for false."""
    if _is_double(x):
        bits = tirx.bitwise_and(tirx.reinterpret("int64", x), tirx.const(0x7FFFFFFFFFFFFFFF, "int64"))
        return bits > tirx.const(0x7FF0000000000000, "int64")
    bits = tirx.bitwise_and(tirx.reinterpret("int32", x), tirx.const(0x7FFFFFFF, "int32"))
    return bits > tirx.const(0x7F800000, "int32")


def larger(x: Expression, y: Expression) -> Expression:
    """The larger of two numbers; of NaN and a number either, where `max` is NaN but costs more on x86."""
    return call(_LARGER, dtype_of(x), x, y)


def log1p(x: Expression) -> Expression:
    """log(1 + x), relative error below 4e-7; NaN below -1."""
    return _call(tirx.log1p, "log1p", x)


def power(x: Expression, y: Expression) -> Expression:
    """x^y: products and roots for the usual constant exponents, else the C library's function."""
    special: dict[float, Callable[[], Expression]] = {
        1.0: lambda: x,
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
        4.0: lambda: (x * x) * (x * x),
        0.5: lambda: tirx.sqrt(x),
        -0.5: lambda: 1 / tirx.sqrt(x),
        -1.0: lambda: 1 / x,
    }
    if isinstance(y, tirx.FloatImm) and float(y.value) in special:
        return special[float(y.value)]()
    return tirx.pow(x, y)


def sinh(x: Expression) -> Expression:
    """Hyperbolic sine, relative error below 1e-6; overflows beyond |x| = 88.7."""
    square, e = x * x, exp(x)
    small = x + x * square * _horner(square, (1 / 5040, 1 / 120, 1 / 6))
    return tirx.Select(tirx.abs(x) < _like(x, 0.5), small, (e - 1 / e) * 0.5)


def cosh(x: Expression) -> Expression:
    """Hyperbolic cosine, relative error below 5e-7; overflows beyond |x| = 88.7."""
    e = exp(x)
    return (e + 1 / e) * 0.5


def asinh(x: Expression) -> Expression:
    """Inverse hyperbolic sine, relative error below 1e-6."""
    if _is_double(x):
        return _extern("asinh", x)
    a = tirx.abs(x)
    large = log_(a) + log(2)
    square = a * a
    small = log1p(a + square / (tirx.sqrt(square + 1) + 1))
    return _with_sign(tirx.Select(a > _like(x, 1e9), large, small), x)


def acosh(x: Expression) -> Expression:
    """Inverse hyperbolic cosine, relative error below 1e-6; NaN below 1."""
    if _is_double(x):
        return _extern("acosh", x)
    t = x - 1
    usual = tirx.Select(t < _like(x, 0), _like(x, nan), log1p(t + tirx.sqrt(t * (t + 2))))
    return tirx.Select(x > _like(x, 1e9), log_(x) + log(2), usual)


def atanh(x: Expression) -> Expression:
    """Inverse hyperbolic tangent, relative error below 1e-6; NaN beyond 1."""
    if _is_double(x):
        return _extern("atanh", x)
    a = tirx.abs(x)
    return _with_sign(log1p((a + a) / (1 - a)) * 0.5, x)


def atan(x: Expression) -> Expression:
    """Arc tangent within 3 ulp."""
    if _is_double(x):
        return _extern("atan", x)
    a = tirx.abs(x)
    high, middle = a > _like(x, 2.414213562373095), a > _like(x, 0.4142135623730950)
    offset = tirx.Select(high, _like(x, pi / 2), tirx.Select(middle, _like(x, pi / 4), _like(x, 0)))
    r = tirx.Select(high, -1 / a, tirx.Select(middle, (a - 1) / (a + 1), a))
    z = r * r
    series = _horner(z, (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1))
    return _with_sign(offset + (series * z * r + r), x)


def asin(x: Expression) -> Expression:
    """Arc sine within 4 ulp; NaN beyond 1."""
    if _is_double(x):
        return _extern("asin", x)
    a = tirx.abs(x)
    large = a > _like(x, 0.5)
    z = tirx.Select(large, (1 - a) * 0.5, a * a)
    inner = _asin_series(z, tirx.Select(large, tirx.sqrt(z), a))
    return _with_sign(tirx.Select(large, pi / 2 - (inner + inner), inner), x)


def acos(x: Expression) -> Expression:
    """Arc cosine with absolute error below 4e-7; NaN beyond 1."""
    if _is_double(x):
        return _extern("acos", x)
    z = (1 - x) * 0.5
    near_one = _asin_series(z, tirx.sqrt(z))
    return tirx.Select(x > _like(x, 0.5), near_one + near_one, pi / 2 - asin(x))


def _asin_series(z: Expression, s: Expression) -> Expression:
    series = (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2, 1.6666752422e-1)
    return _horner(z, series) * z * s + s


def _with_sign(magnitude: Expression, x: Expression) -> Expression:
    return tirx.Select(x < _like(x, 0), -magnitude, magnitude)


def _is_double(x: Expression) -> bool:
    return dtype_of(x).startswith("float64")


def _extern(name: str, x: Expression) -> Expression:
    return tirx.call_pure_extern(dtype_of(x), name, x)


def _call(intrinsic: Callable[[Expression], Expression], name: str, x: Expression) -> Expression:
    return _extern(name, x) if _is_double(x) else intrinsic(x)


def _like(x: Expression, value: float) -> Expression:
    """`value` in every lane, of x's type."""
    return tirx.const(value, dtype_of(x))


def _lanes_of(x: Expression, element: str) -> str:
    lanes = dtype_of(x).partition("x")[2]
    return f"{element}x{lanes}" if lanes else element


def _horner(x: Expression, coefficients: Sequence[float]) -> Expression:
    """The polynomial with these coefficients, highest power first."""
    value = _like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _lower_exp(x: Expression) -> Expression:
    # 2^n * e^r with |r| <= ln(2)/2; 2^n in two factors, so that results reach into the denormals
    x = tirx.max(_like(x, -104.0), tirx.min(_like(x, 89.0), x))
    shifted = x * 1.44269504088896341 + _MAGIC
    n = shifted - _MAGIC
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    series = (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
    mantissa = _horner(r, series) * (r * r) + r + 1
    exponent = tirx.reinterpret(_lanes_of(x, "int32"), shifted) - _MAGIC_BITS
    half = tirx.shift_right(exponent, tirx.const(1, dtype_of(exponent)))
    return mantissa * _power_of_two(half) * _power_of_two(exponent - half)


def _lower_exp2(x: Expression) -> Expression:
    # 2^n * 2^r with |r| <= 1/2; n is added to the exponent of 2^r, whose bits stay those of a normal number
    x = tirx.max(_like(x, -126.0), x)
    shifted = x + _MAGIC
    r = x - (shifted - _MAGIC)
    return _scaled(_horner(r, _EXP2_SERIES), shifted)


def _lower_sigmoid(x: Expression) -> Expression:
    # e^-x = 2^n * 2^r, made as in exp2: it need not reach into the denormals, which vanish beside the 1
    x = tirx.max(_like(x, -88.7), tirx.min(_like(x, 87.3), x))
    shifted = x * -_LOG2E_HIGH + _MAGIC
    r = x * -_LOG2E_HIGH - (shifted - _MAGIC) - x * _LOG2E_LOW
    return 1 / (_scaled(_horner(r, _EXP2_SERIES), shifted) + 1)


def _scaled(mantissa: Expression, shifted: Expression) -> Expression:
    """mantissa * 2^n for n in the low bits of `shifted`, where the result is a normal number."""
    bits = tirx.reinterpret(_lanes_of(mantissa, "int32"), shifted)
    exponent = tirx.shift_left(bits, tirx.const(23, dtype_of(bits)))
    return tirx.reinterpret(dtype_of(mantissa), tirx.reinterpret(dtype_of(bits), mantissa) + exponent)


def _power_of_two(exponent: Expression) -> Expression:
    bits = tirx.shift_left(exponent + 127, tirx.const(23, dtype_of(exponent)))
    return tirx.reinterpret(_lanes_of(exponent, "float32"), bits)


def _lower_log(x: Expression) -> Expression:
    # x = 2^e * m, m in [sqrt(1/2), sqrt(2)); denormals are scaled up first
    tiny = x < _like(x, 1.17549435e-38)
    scaled = tirx.Select(tiny, x * 8388608.0, x)
    bits = tirx.reinterpret(_lanes_of(x, "int32"), scaled)
    shift = tirx.const(23, dtype_of(bits))
    exponent = tirx.shift_right(bits - 0x3F3504F3, shift)
    f = tirx.reinterpret(dtype_of(x), bits - tirx.shift_left(exponent, shift)) - 1
    e = exponent.astype(dtype_of(x)) - tirx.Select(tiny, _like(x, 23), _like(x, 0))
    series = (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )  # fmt: skip
    z = f * f
    tail = _horner(f, series) * f * z + e * _LN2_LOW - z * 0.5
    result = f + tail + e * _LN2_HIGH
    positive = tirx.Select(x < _like(x, inf), result, x)
    otherwise = tirx.Select(x == _like(x, 0), _like(x, -inf), _like(x, nan))
    return tirx.Select(x > _like(x, 0), positive, otherwise)


def _lower_log1p(x: Expression) -> Expression:
    # Kahan: the logarithm of the rounded 1 + x, corrected for what the rounding lost
    u = x + 1
    one = _like(x, 1)
    corrected = tirx.log(u) * (x / tirx.Select(u == one, one, u - 1))
    return tirx.Select(u == one, x, tirx.Select(u < _like(x, inf), corrected, tirx.log(u)))


def _quadrant(x: Expression) -> tuple[Expression, Expression, Expression]:
    """sin and cos of the rest after n quarter turns, and n modulo 4; the turns are taken off in float64."""
    wide = x.astype(_lanes_of(x, "float64"))
    n = tirx.nearbyint(wide * (2 / pi))
    r = (wide - n * (pi / 2)).astype(dtype_of(x))
    r = tirx.max(_like(x, -1), tirx.min(_like(x, 1), r))  # far beyond 1e8 the result stays within [-1, 1]
    quadrant = (n - tirx.floor(n * 0.25) * 4).astype(dtype_of(x))
    z = r * r
    sine = _horner(z, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)) * z * r + r
    series = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
    cosine = _horner(z, series) * (z * z) - z * 0.5 + 1
    return sine, cosine, quadrant


def _lower_sin(x: Expression) -> Expression:
    sine, cosine, quadrant = _quadrant(x)
    odd = tirx.abs(quadrant - 2) == _like(x, 1)
    return tirx.Select(quadrant > _like(x, 1), _like(x, -1), _like(x, 1)) * tirx.Select(odd, cosine, sine)


def _lower_cos(x: Expression) -> Expression:
    sine, cosine, quadrant = _quadrant(x)
    odd = tirx.abs(quadrant - 2) == _like(x, 1)
    negative = tirx.abs(quadrant - 1.5) < _like(x, 1)
    return tirx.Select(negative, _like(x, -1), _like(x, 1)) * tirx.Select(odd, sine, cosine)


def _lower_tanh(x: Expression) -> Expression:
    c = tirx.max(_like(x, -7.90531110763549805), tirx.min(_like(x, 7.90531110763549805), x))
    z = c * c
    numerator = (
        -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
        1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
    )  # fmt: skip
    denominator = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
    quotient = _horner(z, numerator) * c / _horner(z, denominator)
    return tirx.Select(tirx.abs(x) < _like(x, 0.0004), x, quotient)


def _lower_erf(x: Expression) -> Expression:
    c = tirx.max(_like(x, -4.0), tirx.min(_like(x, 4.0), x))
    z = c * c
    numerator = (
        -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
        -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
    )  # fmt: skip
    denominator = (
        -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
        -1.42647390514189e-02,
    )  # fmt: skip
    return _horner(z, numerator) * c / _horner(z, denominator)


def _register(name: str, lower: Callable[[Expression], Expression]) -> None:
    """Expand float32 calls of the intrinsic; other types take the C library's function."""

    def rule(call: Any) -> Expression:
        x = call.args[0]
        if not dtype_of(x).startswith("float32"):
            return tirx.call_llvm_pure_intrin(dtype_of(x), f"llvm.{name}", x)
        return lower(x)

    tvm.ir.register_op_attr(f"tirx.{name}", "TVectorizable", True, level=99)
    tirx.register_intrin_lowering(f"tirx.{name}", target="llvm", f=rule, level=99)


def _log1p_on_gpus(call: Any) -> Expression:
    return tirx.call_pure_extern(dtype_of(call), "log1pf", call.args[0])


tirx.register_intrin_lowering("tirx.log1p", target="cuda", f=_log1p_on_gpus, level=99)

_LOWERINGS = (
    ("exp", _lower_exp),
    ("exp2", _lower_exp2),
    ("sigmoid", _lower_sigmoid),
    ("log", _lower_log),
    ("log1p", _lower_log1p),
    ("sin", _lower_sin),
    ("cos", _lower_cos),
    ("tanh", _lower_tanh),
    ("erf", _lower_erf),
)
LARGER = f"tirx.{_LARGER}"
"""The operator of calls that `larger` makes."""
FUNCTIONS = tuple(f"tirx.{_name}" for _name, _ in _LOWERINGS)
"""Intrinsics that expand to polynomials."""
register(_LARGER, lambda operands: tirx.max(*operands))
for _name, _lower in _LOWERINGS:
    _register(_name, _lower)
for _name in ("nearbyint", "reinterpret"):
    tvm.ir.register_op_attr(f"tirx.{_name}", "TVectorizable", True, level=99)
