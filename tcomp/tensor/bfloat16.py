"""Arithmetic on bfloat16: rounding, and products of pairs summed in float32.

Both are intrinsics. By default they become integer shifts and float32 multiply-adds; with AVX512-BF16 they
are `vcvtneps2bf16` and `vdpbf16ps`, with ARM's bf16 `bfcvtn` and `bfdot`. The instructions for products, and
Intel's for rounding, take denormal operands for zero and flush denormal results, whatever the CPU's mode is;
plain code keeps them. Rounding is to nearest even and keeps NaN; `bfdot` rounds its sums to odd.
"""

from __future__ import annotations

from tcomp.tensor.intrinsics import (
    Expression,
    Instruction,
    Operands,
    by_element,
    call,
    lanes_of,
    llvm_vector,
    register,
    spread,
    vector,
)
from tcomp.tvm_api import tirx

_BITS = "uint32"
"""The element type of a pair, and of a float32's bits."""
_ROUND, _MULTIPLY_ADD = "bfloat16_rounded", "bfloat16_multiply_add"
ROUNDED = f"tirx.{_ROUND}"
"""The operator of calls that `rounded` makes."""


def rounded(x: Expression) -> Expression:
    """The bits, as `uint16`, of float32 `x` rounded to bfloat16; of all lanes of a vector."""
    return call(_ROUND, vector("uint16", lanes_of(x)), x)


def multiply_add(total: Expression, left: Expression, right: Expression) -> Expression:
    """`total` in float32 plus the products of both halves of the pairs `left` and `right`.

    All lanes have the same `left`.

    The products of the high halves are added first, then those of the low halves, with a rounding each, as
    Intel documents `vdpbf16ps`.
    """
    return call(_MULTIPLY_ADD, "float32", total, left, right)


def _constant(value: int, lanes: int) -> Expression:
    return spread(tirx.const(value, _BITS), lanes)


def _lower_rounded(operands: Operands) -> Expression:
    (x,) = operands
    lanes = lanes_of(x)
    bits = tirx.reinterpret(vector(_BITS, lanes), x)
    high = tirx.shift_right(bits, _constant(16, lanes))
    odd = tirx.bitwise_and(high, _constant(1, lanes))
    nearest = tirx.shift_right(bits + odd + _constant(0x7FFF, lanes), _constant(16, lanes))
    quiet = tirx.bitwise_or(high, _constant(0x40, lanes))
    is_nan = tirx.bitwise_and(bits, _constant(0x7FFFFFFF, lanes)) > _constant(0x7F800000, lanes)
    return tirx.Select(is_nan, quiet, nearest).astype(vector("uint16", lanes))


def lower_multiply_add(operands: Operands) -> Expression:
    """`multiply_add` in float32 instructions."""
    total, *pairs = operands
    lanes = lanes_of(total)
    wide = vector("float32", lanes)
    high = [tirx.bitwise_and(x, _constant(0xFFFF0000, lanes)) for x in pairs]
    low = [tirx.shift_left(x, _constant(16, lanes)) for x in pairs]
    for left, right in (high, low):
        factors = [tirx.reinterpret(wide, x) for x in (left, right)]
        total = tirx.call_llvm_pure_intrin(wide, "llvm.fma", *factors, total)
    return total


def _rounded_text(name: str, lanes: int) -> str:
    narrow, bits, wide = (llvm_vector(element, lanes) for element in ("bfloat", "i16", "float"))
    return f"""
define weak {bits} @{name}({wide} %x) alwaysinline {{
  %narrow = fptrunc {wide} %x to {narrow}
  %bits = bitcast {narrow} %narrow to {bits}
  ret {bits} %bits
}}"""


def _dpbf16ps_text(name: str, lanes: int) -> str:
    narrow, pairs, wide = (
        llvm_vector("bfloat", 2 * lanes),
        llvm_vector("i32", lanes),
        llvm_vector("float", lanes),
    )
    intrinsic = f"@llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    return f"""
declare {wide} {intrinsic}({wide}, {narrow}, {narrow})
define weak {wide} @{name}({wide} %total, {pairs} %left, {pairs} %right) alwaysinline {{
  %a = bitcast {pairs} %left to {narrow}
  %b = bitcast {pairs} %right to {narrow}
  %sum = call {wide} {intrinsic}({wide} %total, {narrow} %a, {narrow} %b)
  ret {wide} %sum
}}"""


register(
    _ROUND,
    _lower_rounded,
    (
        Instruction("avx512bf16", (1, 2, 4, 8, 16, 32), _rounded_text),
        Instruction("bf16", (1, 2, 4, 8), _rounded_text),
    ),
)
register(
    _MULTIPLY_ADD,
    lower_multiply_add,
    (
        Instruction("avx512bf16", (4, 8, 16), _dpbf16ps_text),
        Instruction("bf16", (2, 4), by_element("bfdot", "float", "h")),
    ),
)
