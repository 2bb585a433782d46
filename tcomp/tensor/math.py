"""Mathematical functions of one element."""

from __future__ import annotations

from typing import Any

from tcomp.tvm_api import tirx

Expression = Any

def dtype_of(x: Expression) -> str:
    """The element type of an expression."""
    return str(x.ty.dtype)


exp = tirx.exp
log = tirx.log
sin = tirx.sin
cos = tirx.cos
tan = tirx.tan
asin = tirx.asin
acos = tirx.acos
atan = tirx.atan
asinh = tirx.asinh
acosh = tirx.acosh
atanh = tirx.atanh
tanh = tirx.tanh
erf = tirx.erf
sigmoid = tirx.sigmoid
log1p = tirx.log1p
power = tirx.pow


def expm1(x: Expression) -> Expression:
    return exp(x) - 1


def sinh(x: Expression) -> Expression:
    e = exp(x)
    return (e - 1 / e) * 0.5


def cosh(x: Expression) -> Expression:
    e = exp(x)
    return (e + 1 / e) * 0.5
