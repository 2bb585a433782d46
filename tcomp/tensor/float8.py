"""Floats of 8 bits as their bits, and conversions between them and float32 by integer arithmetic.

TVM stores them only. Schedules are built with their types; code is made of `as_bits`, the same on CPUs and
GPUs. Rounding is to nearest even and keeps NaN; what is beyond the largest number becomes infinity, and NaN
in e4m3fn, which has none. Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022; the same bits
as ml_dtypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.relay.types import BITS, FLOAT8, numpy_dtype
from tcomp.tensor.intrinsics import (
    Expression,
    Operands,
    call,
    dtype_of,
    lanes_of,
    register,
    spread,
    vector,
)
from tcomp.tensor.math import convert
from tcomp.tvm_api import PrimFunc, structural_mutate, structural_walk, tirx, tvm

_BITS = "uint32"
"""Of a float32 number."""
_MANTISSA, _BIAS = 23, 127
"""Of float32: bits, and what is added to exponents."""
_INFINITY, _QUIET_NAN = 0x7F800000, 0x7FC00000


@dataclass(frozen=True)
class Float8:
    """A format of 8 bits: a sign, an exponent with `bias` added to it, `mantissa` bits.

    Numbers of the bits `infinity` are infinite, with more bits than `largest` and those NaN.
    """

    mantissa: int
    bias: int
    largest: int
    nan: int
    infinity: int | None = None

    @property
    def beyond(self) -> int:
        """What numbers become that are rounded beyond the largest."""
        return self.nan if self.infinity is None else self.infinity

    @property
    def least(self) -> float:
        """The distance of subnormal numbers, 1 for the bits."""
        return 2.0 ** (1 - self.bias - self.mantissa)


FORMATS = {"float8_e4m3fn": Float8(3, 7, 0x7E, 0x7F), "float8_e5m2": Float8(2, 15, 0x7B, 0x7E, 0x7C)}


def as_bits(function: PrimFunc) -> PrimFunc:
    """`function` with uint8 in place of floats of 8 bits, and conversions where numbers were cast."""
    return _Bits().function(function) if _has_float8(function) else function


def _format(dtype: str) -> str | None:
    """The float of 8 bits that a type, which may be of vectors, has as elements."""
    element = dtype.partition("x")[0]
    return element if element in FLOAT8 else None


def _bits_of(dtype: str) -> str:
    element, x, lanes = dtype.partition("x")
    return f"{BITS[element]}{x}{lanes}"


def _has_float8(function: PrimFunc) -> bool:
    dtypes = [str(buffer.dtype) for buffer in function.params]

    def on_allocation(allocation: Any) -> None:
        dtypes.append(str(allocation.buffer.dtype))

    def on_cast(cast: Any) -> None:
        dtypes.append(dtype_of(cast))

    structural_walk(function.body, [(tirx.AllocBuffer, on_allocation), (tirx.Cast, on_cast)])
    return any(_format(dtype) for dtype in dtypes)


class _Bits:
    """Rewrites buffers, variables and expressions of floats of 8 bits as those of uint8."""

    def __init__(self) -> None:
        self._variables: dict[str, Any] = {}
        self._rules = [
            (tvm.ir.Var, self._on_variable),
            (tvm.ir.expr.TensorLoad, self._on_load),
            (tirx.BufferStore, self._on_store),
            (tvm.ir.Call, self._on_call),
            (tirx.Cast, self._on_cast),
            (tirx.FloatImm, self._on_constant),
            (tirx.Select, self._on_select),
            (tirx.Broadcast, self._on_broadcast),
            (tirx.Shuffle, self._on_shuffle),
        ]

    def function(self, function: PrimFunc) -> PrimFunc:
        parameters = [self._on_variable(buffer, None) for buffer in function.params]
        body = structural_mutate(function.body, self._rules)
        return tirx.PrimFunc(parameters, body).with_attrs(dict(function.attrs or {}))

    def _on_variable(self, variable: Any, mutator: Any) -> Any:
        is_buffer = isinstance(variable.ty, tirx.BufferType)
        if not is_buffer and not isinstance(variable.ty, tvm.ir.PrimType):
            return variable
        dtype = str(variable.dtype) if is_buffer else dtype_of(variable)
        if not _format(dtype):
            return variable
        key = repr(variable.__chandle__())
        if key not in self._variables:
            self._variables[key] = (
                tirx.decl_buffer(
                    variable.shape, _bits_of(dtype), name=str(variable.name), scope=str(variable.scope())
                )
                if is_buffer
                else tirx.Var(str(variable.name), _bits_of(dtype))
            )
        return self._variables[key]

    def _on_load(self, load: Any, mutator: Any) -> Any:
        return tirx.BufferLoad(mutator.mutate(load.source), [mutator.mutate(i) for i in load.indices])

    def _on_store(self, store: Any, mutator: Any) -> Any:
        indices = [mutator.mutate(i) for i in store.indices]
        return tirx.BufferStore(mutator.mutate(store.buffer), mutator.mutate(store.value), indices)

    def _on_call(self, found: Any, mutator: Any) -> Any:
        name = str(getattr(found.op, "name", "")).rpartition(".")[2]
        operands = [mutator.mutate(a) for a in found.args]
        if name == "address_of":
            return tirx.address_of(operands[0])
        result = dtype_of(found)
        result = _bits_of(result) if _format(result) else result
        if name == "reinterpret" and dtype_of(operands[0]) == result:
            return operands[0]
        return (
            mutator.default_mutate(found)
            if result == dtype_of(found)
            else tvm.ir.Call(found.op, operands, ret_ty=result)
        )

    def _on_cast(self, cast: Any, mutator: Any) -> Any:
        value, source, target = mutator.mutate(cast.value), dtype_of(cast.value), dtype_of(cast)
        formats = _format(source), _format(target)
        lanes = lanes_of(cast)
        if formats[0] is not None:
            value = call(f"{formats[0]}_widened", vector("float32", lanes), value)
        if formats[1] is None:
            return convert(value, target)
        return call(f"{formats[1]}_rounded", vector("uint8", lanes), convert(value, vector("float32", lanes)))

    def _on_constant(self, constant: Any, mutator: Any) -> Any:
        dtype = _format(dtype_of(constant))
        if dtype is None:
            return constant
        number = np.asarray(float(constant.value)).astype(numpy_dtype(dtype))
        return tirx.const(int(number.view(np.uint8)), BITS[dtype])

    def _on_select(self, select: Any, mutator: Any) -> Any:
        return tirx.Select(
            *(mutator.mutate(x) for x in (select.condition, select.true_value, select.false_value))
        )

    def _on_broadcast(self, broadcast: Any, mutator: Any) -> Any:
        return tirx.Broadcast(mutator.mutate(broadcast.value), broadcast.lanes)

    def _on_shuffle(self, shuffle: Any, mutator: Any) -> Any:
        return tirx.Shuffle([mutator.mutate(v) for v in shuffle.vectors], shuffle.indices)


def _lower_widened(form: Float8, operands: Operands) -> Expression:
    lanes = lanes_of(operands[0])
    wide, real = vector(_BITS, lanes), vector("float32", lanes)

    def constant(value: int) -> Expression:
        return spread(tirx.const(value, _BITS), lanes)

    bits = operands[0].astype(wide)
    sign = tirx.shift_left(tirx.bitwise_and(bits, constant(0x80)), constant(24))
    magnitude = tirx.bitwise_and(bits, constant(0x7F))
    shift = _MANTISSA - form.mantissa
    normal = tirx.shift_left(magnitude, constant(shift)) + constant((_BIAS - form.bias) << _MANTISSA)
    # A conversion of integers, as subnormal float32 numbers may count as zero.
    least = spread(tirx.const(form.least, "float32"), lanes)
    subnormal = tirx.reinterpret(wide, magnitude.astype(real) * least)
    number = tirx.Select(magnitude < constant(1 << form.mantissa), subnormal, normal)
    if form.infinity is not None:
        number = tirx.Select(magnitude > constant(form.largest), constant(_INFINITY), number)
    first_nan = form.nan if form.infinity is None else form.infinity + 1
    number = tirx.Select(magnitude >= constant(first_nan), constant(_QUIET_NAN), number)
    return tirx.reinterpret(real, tirx.bitwise_or(sign, number))


def _lower_rounded(form: Float8, operands: Operands) -> Expression:
    (x,) = operands
    lanes = lanes_of(x)
    wide, real = vector(_BITS, lanes), vector("float32", lanes)

    def constant(value: int) -> Expression:
        return spread(tirx.const(value, _BITS), lanes)

    bits = tirx.reinterpret(wide, x)
    magnitude = tirx.bitwise_and(bits, constant(0x7FFFFFFF))
    sign = tirx.bitwise_and(tirx.shift_right(bits, constant(24)), constant(0x80))
    shift = _MANTISSA - form.mantissa
    odd = tirx.bitwise_and(tirx.shift_right(magnitude, constant(shift)), constant(1))
    nearest = magnitude + odd + constant((1 << (shift - 1)) - 1)
    normal = tirx.shift_right(nearest, constant(shift)) - constant((_BIAS - form.bias) << form.mantissa)
    # The sum's last bit is that of subnormal numbers, and it is rounded as these are.
    magic = form.least * 2.0**_MANTISSA
    total = tirx.reinterpret(real, magnitude) + spread(tirx.const(magic, "float32"), lanes)
    subnormal = tirx.bitwise_and(tirx.reinterpret(wide, total), constant(0x7F))
    exponent = tirx.shift_right(magnitude, constant(_MANTISSA))
    number = tirx.Select(exponent < constant(_BIAS - form.bias + 1), subnormal, normal)
    # Of numbers that are far beyond, more than 8 bits would be left.
    far = tirx.bitwise_or(number > constant(form.largest), exponent > constant(_BIAS + form.bias + 1))
    number = tirx.Select(far, constant(form.beyond), number)
    number = tirx.Select(magnitude > constant(_INFINITY), constant(form.nan), number)
    return tirx.bitwise_or(sign, number).astype(vector("uint8", lanes))


for _dtype, _form in FORMATS.items():
    register(f"{_dtype}_widened", lambda operands, form=_form: _lower_widened(form, operands))
    register(f"{_dtype}_rounded", lambda operands, form=_form: _lower_rounded(form, operands))
