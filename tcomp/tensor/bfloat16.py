"""Arithmetic on bfloat16: rounding, and products of pairs summed in float32.

Both are intrinsics. By default they become integer shifts and float32 multiply-adds; `with_instructions`
has them become `vcvtneps2bf16` and `vdpbf16ps` on targets with AVX512-BF16. The instructions take denormal
operands for zero and flush denormal results, whatever the CPU's mode is; plain code keeps them. Both round
to nearest even and keep NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tcomp.target.target import Target
from tcomp.tensor.intrinsics import Expression, call, lanes_of, register, spread, vector
from tcomp.tvm_api import PrimFunc, structural_map, tirx, tvm

_BITS = "uint32"
"""The element type of a pair, and of a float32's bits."""
_ROUND, _MULTIPLY_ADD = "bfloat16_rounded", "bfloat16_multiply_add"
_ROUNDED_LANES = (1, 2, 4, 8, 16, 32)
_MULTIPLIED_LANES = (4, 8, 16)
"""Vectors for which there is an instruction; others are computed by plain code."""


def rounded(x: Expression) -> Expression:
    """The bits, as `uint16`, of float32 `x` rounded to bfloat16."""
    return call(_ROUND, "uint16", x)


def multiply_add(total: Expression, left: Expression, right: Expression) -> Expression:
    """`total` in float32 plus the products of both halves of the pairs `left` and `right`.

    The products of the high halves are added first, then those of the low halves, with a rounding each, as
    Intel documents `vdpbf16ps`.
    """
    return call(_MULTIPLY_ADD, "float32", total, left, right)


def with_instructions(function: PrimFunc, target: Target) -> PrimFunc:
    """`function` with AVX512-BF16's instructions for the intrinsics of this module, if `target` has them."""
    if not target.has("avx512bf16"):
        return function
    replaced: list[str] = []

    def on_call(found: Any) -> Any:
        name = str(getattr(found.op, "name", "")).removeprefix("tirx.")
        if name not in (_ROUND, _MULTIPLY_ADD):
            return found
        replaced.append(name)
        return call(_by_instruction(name), str(found.ty.dtype), *found.args)

    body = structural_map(function.body, (tvm.ir.Call, on_call))
    if not replaced:
        return function
    return function.with_body(tirx.AttrStmt("default", "pragma_import_llvm", _INSTRUCTIONS, body))


def _constant(value: int, lanes: int) -> Expression:
    return spread(tirx.const(value, _BITS), lanes)


def _lower_rounded(operands: Sequence[Expression]) -> Expression:
    (x,) = operands
    lanes = lanes_of(x)
    bits = tirx.reinterpret(vector(_BITS, lanes), x)
    high = tirx.shift_right(bits, _constant(16, lanes))
    odd = tirx.bitwise_and(high, _constant(1, lanes))
    nearest = tirx.shift_right(bits + odd + _constant(0x7FFF, lanes), _constant(16, lanes))
    quiet = tirx.bitwise_or(high, _constant(0x40, lanes))
    is_nan = tirx.bitwise_and(bits, _constant(0x7FFFFFFF, lanes)) > _constant(0x7F800000, lanes)
    return tirx.Select(is_nan, quiet, nearest).astype(vector("uint16", lanes))


def _lower_multiply_add(operands: Sequence[Expression]) -> Expression:
    total, *pairs = operands
    lanes = lanes_of(total)
    wide = vector("float32", lanes)
    high = [tirx.bitwise_and(x, _constant(0xFFFF0000, lanes)) for x in pairs]
    low = [tirx.shift_left(x, _constant(16, lanes)) for x in pairs]
    for left, right in (high, low):
        factors = [tirx.reinterpret(wide, x) for x in (left, right)]
        total = tirx.call_llvm_pure_intrin(wide, "llvm.fma", *factors, total)
    return total


def _by_instruction(name: str) -> str:
    return f"{name}_avx512"


def _lower_rounded_avx512(operands: Sequence[Expression]) -> Expression:
    lanes = lanes_of(operands[0])
    if lanes not in _ROUNDED_LANES:
        return _lower_rounded(operands)
    return tirx.call_pure_extern(vector("uint16", lanes), f"tcomp_{_ROUND}_{lanes}", *operands)


def _lower_multiply_add_avx512(operands: Sequence[Expression]) -> Expression:
    lanes = lanes_of(operands[0])
    if lanes not in _MULTIPLIED_LANES:
        return _lower_multiply_add(operands)
    return tirx.call_pure_extern(vector("float32", lanes), f"tcomp_{_MULTIPLY_ADD}_{lanes}", *operands)


def _instructions() -> str:
    """Functions of LLVM's language for each instruction and width, to be inlined.

    TVM cannot call the LLVM intrinsics themselves: it has no vectors of bfloat16.
    """

    def llvm(element: str, lanes: int) -> str:
        return element if lanes == 1 else f"<{lanes} x {element}>"

    text: list[str] = []
    for n in _ROUNDED_LANES:
        narrow, bits, wide = (llvm(element, n) for element in ("bfloat", "i16", "float"))
        text.append(f"""
define weak {bits} @tcomp_{_ROUND}_{n}({wide} %x) alwaysinline {{
  %narrow = fptrunc {wide} %x to {narrow}
  %bits = bitcast {narrow} %narrow to {bits}
  ret {bits} %bits
}}""")
    for n in _MULTIPLIED_LANES:
        narrow, pairs, wide = llvm("bfloat", 2 * n), llvm("i32", n), llvm("float", n)
        intrinsic = f"@llvm.x86.avx512bf16.dpbf16ps.{32 * n}"
        text.append(f"""
declare {wide} {intrinsic}({wide}, {narrow}, {narrow})
define weak {wide} @tcomp_{_MULTIPLY_ADD}_{n}({wide} %total, {pairs} %left, {pairs} %right) alwaysinline {{
  %a = bitcast {pairs} %left to {narrow}
  %b = bitcast {pairs} %right to {narrow}
  %sum = call {wide} {intrinsic}({wide} %total, {narrow} %a, {narrow} %b)
  ret {wide} %sum
}}""")
    return "\n".join(text)


_INSTRUCTIONS = _instructions()
register(_ROUND, _lower_rounded)
register(_MULTIPLY_ADD, _lower_multiply_add)
register(_by_instruction(_ROUND), _lower_rounded_avx512)
register(_by_instruction(_MULTIPLY_ADD), _lower_multiply_add_avx512)
