"""`max` and `min` of floats, which keep NaN on every CPU: they are NaN where either operand is.

TVM compares and chooses: with a NaN it chooses the second operand. ARM has an instruction that keeps both.
Elsewhere both orders are chosen from, three instructions in place of one, unless an operand is a number:
bounds and activations cost what they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

from tcomp.target.target import Target
from tcomp.tensor.intrinsics import dtype_of, lanes_of, llvm_vector
from tcomp.tensor.math import LARGER
from tcomp.tvm_api import structural_map, tirx, tvm

_WIDEST = {"aarch64": 64, "arm": 32}
"""Bits of the floats that a machine has an instruction for. LLVM ends the process over those of float64 on
32-bit ARM, whose vectors hold none."""
_LLVM = {16: ("half", "i16"), 32: ("float", "i32"), 64: ("double", "i64")}
"""By their bits, LLVM's names of floats and of integers with as many."""


def widest_instruction(target: Target) -> int:
    """The bits of the widest floats that `target` has instructions for which keep NaN; 0 without any."""
    return _WIDEST.get(target.machine, 0)


def by_instructions(function: Any, widest: int) -> Any:
    """`function` with instructions that keep NaN for `max`, `min` and `larger` of floats of up to `widest`
    bits."""

    def named(node: Any, name: str, operands: Sequence[Any]) -> Any:
        fits = 0 < _float_bits(node) <= widest
        return tirx.call_llvm_pure_intrin(dtype_of(node), f"llvm.{name}", *operands) if fits else node

    def on_extreme(node: Any) -> Any:
        return named(node, "maximum" if isinstance(node, tirx.Max) else "minimum", (node.a, node.b))

    def on_call(node: Any) -> Any:
        return named(node, "maximum", node.args) if getattr(node.op, "name", "") == LARGER else node

    rules = [((tirx.Max, tirx.Min), on_extreme), (tvm.ir.Call, on_call)]
    return function.with_body(structural_map(function.body, rules)) if widest else function


def keep_nan(function: Any) -> Any:
    """`function` with code that keeps NaN for every `max` and `min` of floats that it has."""
    definitions: dict[str, str] = {}

    def on_extreme(node: Any) -> Any:
        bits, dtype = _float_bits(node), dtype_of(node)
        if not bits or _is_number(node.a):
            return node
        if _is_number(node.b):
            return type(node)(node.b, node.a)
        is_largest = isinstance(node, tirx.Max)
        name = f"tcomp_{'maximum' if is_largest else 'minimum'}_{dtype}"
        definitions[name] = _text(name, "ogt" if is_largest else "olt", *_LLVM[bits], lanes_of(node))
        return tirx.call_pure_extern(dtype, name, node.a, node.b)

    body = structural_map(function.body, ((tirx.Max, tirx.Min), on_extreme))
    for text in definitions.values():
        body = tirx.AttrStmt("default", "pragma_import_llvm", text, body)
    return function.with_body(body)


def _float_bits(node: Any) -> int:
    """The bits of an element of `node`, where that is a float, else 0."""
    dtype = dtype_of(node)
    return int(tvm.runtime.DataType(dtype).bits) if dtype.startswith("float") else 0


def _is_number(x: Any) -> bool:
    """Whether `x` is a constant other than NaN, in one lane or all."""
    constant = x.value if isinstance(x, tirx.Broadcast) else x
    return isinstance(constant, tirx.FloatImm) and not isnan(constant.value)


def _text(name: str, compare: str, element: str, integer: str, lanes: int) -> str:
    """Both orders choose the same of two numbers. Where one operand is NaN, one of them chooses that, whose
    exponent is all ones, whatever bits the other choice adds."""
    floats, bits, mask = (llvm_vector(kind, lanes) for kind in (element, integer, "i1"))
    return f"""
define weak {floats} @{name}({floats} %a, {floats} %b) alwaysinline {{
  %a_is_beyond = fcmp {compare} {floats} %a, %b
  %a_or_second = select {mask} %a_is_beyond, {floats} %a, {floats} %b
  %b_is_beyond = fcmp {compare} {floats} %b, %a
  %b_or_second = select {mask} %b_is_beyond, {floats} %b, {floats} %a
  %one = bitcast {floats} %a_or_second to {bits}
  %other = bitcast {floats} %b_or_second to {bits}
  %both = or {bits} %one, %other
  %extreme = bitcast {bits} %both to {floats}
  ret {floats} %extreme
}}"""
