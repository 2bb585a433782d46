"""Vectors of 128 bits that are loaded in two halves, for cores that execute in order (`Target.half_loads`).

On Cortex-A55 a load of 128 bits takes two cycles in which nothing else starts; one of 64 bits starts beside
a product. So the lower half is loaded into a vector register (`ldr d`), the upper one into a general register
(`ldr x`), which `ins` puts beside it: three instructions that hide behind three products
(`tcomp.codegen.in_order` says which start together). LLVM would make one load of both halves again, had it
not a piece of assembly without instructions between them.

LLVM orders such code well before it knows registers; afterwards, by a table that lets two products start in a
cycle, it puts loads side by side.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tcomp.target.target import Target
from tcomp.tensor.intrinsics import dtype_of, lanes_of, llvm_vector
from tcomp.tvm_api import structural_map, structural_walk, tirx, tvm

_BITS, _REGISTERS = 128, 32
_LLVM = {16: "half", 32: "float", 64: "double"}
"""By bits of an element, LLVM's type of floats."""
_NAME = "tcomp_halves"


def llvm_attributes(target: Target) -> list[str]:
    """What LLVM is told for such cores."""
    return ["-use-postra-scheduler"] if target.half_loads else []


def with_functions(function: Any) -> Any:
    """Lowered `function` with vectors loaded in halves in its innermost loops that multiply."""
    definitions: dict[str, str] = {}
    held: set[Any] = set()

    def on_buffer(statement: Any) -> None:
        bits = prod(int(extent) for extent in statement.buffer.shape) * _bits(str(statement.buffer.dtype))
        if bits <= _REGISTERS * _BITS:
            held.add(statement.buffer)

    structural_walk(function.body, (tirx.AllocBuffer, on_buffer))

    def on_load(node: Any) -> Any:
        *outer, index = node.indices
        first_index = _first_of_dense(node.source, index)
        if node.source in held or first_index is None or _bits(dtype_of(node)) != _BITS:
            return node
        name = f"{_NAME}_{dtype_of(node)}"
        definitions[name] = _text(name, tvm.runtime.DataType(dtype_of(node)))
        first = tirx.address_of(tirx.BufferLoad(node.source, [*outer, first_index]))
        return tirx.call_extern(dtype_of(node), name, first)

    def on_loop(loop: Any) -> Any:
        inner: list[Any] = []
        structural_walk(loop.body, (tirx.For, inner.append))
        if not _multiplies(loop.body) or any(_multiplies(other.body) for other in inner):
            return loop  # Inner loops of one that multiplies only fetch ahead.
        body = structural_map(loop.body, (tvm.ir.expr.TensorLoad, on_load))
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, annotations=loop.annotations)

    body = structural_map(function.body, (tirx.For, on_loop))
    for text in definitions.values():
        body = tirx.AttrStmt("default", "pragma_import_llvm", text, body)
    return function.with_body(body) if definitions else function


def _bits(dtype: str) -> int:
    """Of an element, or of a vector."""
    found = tvm.runtime.DataType(dtype)
    return int(found.bits * found.lanes)


def _first_of_dense(buffer: Any, index: Any) -> Any:
    """Where neighbouring elements begin, or the one vector of a buffer of vectors; None for others."""
    if _bits(str(buffer.dtype)) == _BITS:
        return index
    if isinstance(index, tirx.Ramp) and isinstance(index.stride, tirx.IntImm) and int(index.stride) == 1:
        return index.base
    return None


def _multiplies(body: Any) -> bool:
    """Whether vectors are multiplied, by plain products or those of groups (`intrinsics.by_element`)."""
    found: list[Any] = []

    def on_call(node: Any) -> None:
        if getattr(node.op, "name", "") in ("tirx.call_pure_extern", "tirx.call_extern"):
            found.extend(x for x in node.args[1:] if lanes_of(x) > 1)

    def on_product(node: Any) -> None:
        if lanes_of(node) > 1:
            found.append(node)

    structural_walk(body, (tirx.Mul, on_product))
    if not found:
        structural_walk(body, (tvm.ir.Call, on_call))
    return bool(found)


def _text(name: str, dtype: Any) -> str:
    element = _LLVM[dtype.bits] if str(dtype).startswith("float") else f"i{dtype.bits}"
    result = llvm_vector(element, dtype.lanes)
    return f"""
define weak {result} @{name}(ptr %from) alwaysinline {{
  %lower = load double, ptr %from, align 1
  %place = getelementptr i8, ptr %from, i64 8
  %loaded = load i64, ptr %place, align 1
  %upper = call i64 asm "", "=r,0"(i64 %loaded) nounwind memory(none)
  %half = insertelement <2 x double> poison, double %lower, i64 0
  %bits = bitcast <2 x double> %half to <2 x i64>
  %both = insertelement <2 x i64> %bits, i64 %upper, i64 1
  %result = bitcast <2 x i64> %both to {result}
  ret {result} %result
}}"""
