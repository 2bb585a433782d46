"""SVE in vectors of one length: how LLVM is asked for it, and what it does not see by itself.

With the length of SVE's vectors known, LLVM holds TIR's vectors of that many bits in SVE's registers. It then
takes two operations apart, on the ports of the products. They become calls of functions that LLVM inlines:

- a scalar in all lanes, which is one load (`ld1rw`) where it comes from memory;
- a product by one lane of a register (`fmla z.s, z.s, z.s[2]`), lanes being those of each 128 bits. One load
  (`ld1rqw`) brings the factors of four such products.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

from tcomp.target.target import SEGMENT_BITS, Target
from tcomp.tensor.intrinsics import dtype_of, lanes_of, llvm_vector, vector
from tcomp.tvm_api import structural_map, structural_walk, tirx, tvm

_COMPILED_AS = "cortex-a76"
"""The core whose order of instructions the code has. For neoverse-v1 LLVM loads further ahead than registers
reach, and broadcasts by two instructions, the second of which takes a port of the products."""
_WIDTH = 32
"""Bits of the elements that are multiplied by lanes."""
_LLVM: Mapping[str, tuple[str, str]] = {
    "float16": ("half", "f16"),
    "float32": ("float", "f32"),
    "float64": ("double", "f64"),
    **{f"{sign}int{bits}": (f"i{bits}", f"i{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""By element type: LLVM's name, and that in the names of its intrinsics."""


_OPTIONS_OF_LLVM = Lock()


def alone(target: Target) -> AbstractContextManager[object]:
    """Where one thread at a time compiles for SVE, as LLVM has one set of options. Without SVE they are of no
    consequence, so that other threads compile for other targets meanwhile."""
    return _OPTIONS_OF_LLVM if target.sve_bits else nullcontext()


def llvm_target(target: Target) -> dict[str, Any]:
    """What TVM's target for `target` has besides, or in other words than, `Target.llvm`.

    TVM sets LLVM's options while it compiles for the target, and takes them back (see `alone`).
    """
    if not target.sve_bits:
        return {}
    length = [f"-aarch64-sve-vector-bits-{end}:uint={target.sve_bits}" for end in ("min", "max")]
    used = [f"+{feature}" for feature in sorted(target.features)]
    return {"mcpu": _COMPILED_AS, "mattr": [*used, *target.llvm.get("mattr", ())], "cl-opt": length}


def with_functions(function: Any, bits: int) -> Any:
    """Lowered `function` with calls in place of products by lanes and of broadcasts, in vectors of `bits`."""
    definitions: dict[str, str] = {}
    held = _held_buffers(function.body)

    def on_sum(node: Any) -> Any:
        if dtype_of(node) != vector("float32", bits // _WIDTH):
            return node
        for total, product in ((node.a, node.b), (node.b, node.a)):
            found = _by_lane(product, held)
            if found is not None:
                factors, lane, other = found
                name = f"tcomp_sve_lane{lane}"
                definitions[name] = _by_lane_text(name, lane, bits)
                return tirx.call_pure_extern(dtype_of(node), name, total, other, factors)
        return node

    def on_broadcast(node: Any) -> Any:
        element = dtype_of(node.value)
        if element not in _LLVM or isinstance(node.value, (tirx.IntImm, tirx.FloatImm)):
            return node
        if lanes_of(node) * _width(element) != bits:
            return node
        name = f"tcomp_sve_spread_{element}"
        definitions[name] = _spread_text(name, element, bits)
        return tirx.call_pure_extern(dtype_of(node), name, node.value)

    body = structural_map(function.body, (tirx.Add, on_sum))
    body = structural_map(body, (tirx.Broadcast, on_broadcast))
    for text in definitions.values():
        body = tirx.AttrStmt("default", "pragma_import_llvm", text, body)
    return function.with_body(body)


def scalable(element: str, width: int) -> str:
    """LLVM's vector of as many elements of `width` bits as a register of SVE holds."""
    return f"<vscale x {SEGMENT_BITS // width} x {element}>"


def _width(element: str) -> int:
    return int(tvm.runtime.DataType(element).bits)


def _held_buffers(body: Any) -> set[Any]:
    """Buffers that live in registers or on the stack."""
    found: set[Any] = set()

    def on_buffer(statement: Any) -> None:
        found.add(statement.buffer)

    structural_walk(body, (tirx.AllocBuffer, on_buffer))
    return found


def _by_lane(product: Any, held: set[Any]) -> tuple[Any, int, Any] | None:
    """Of a product by an element of a held buffer: its segment, its lane there, and the other operand."""
    if not isinstance(product, tirx.Mul):
        return None
    lanes = SEGMENT_BITS // _WIDTH
    for spread, other in ((product.a, product.b), (product.b, product.a)):
        load: Any = spread.value if isinstance(spread, tirx.Broadcast) else None
        if not isinstance(load, tvm.ir.expr.TensorLoad) or load.source not in held:
            continue
        (at,) = load.indices
        if isinstance(at, tirx.IntImm) and int(at) // lanes < int(load.source.shape[0]) // lanes:
            first = int(at) // lanes * lanes
            return tirx.BufferLoad(load.source, [tirx.Ramp(first, 1, lanes)]), int(at) - first, other
    return None


def _by_lane_text(name: str, lane: int, bits: int) -> str:
    wide, fixed, segment = scalable("float", _WIDTH), llvm_vector("float", bits // _WIDTH), "<4 x float>"
    lanes = bits // _WIDTH
    names = {
        "segment": f"@llvm.vector.insert.nxv4f32.v{SEGMENT_BITS // _WIDTH}f32",
        "insert": f"@llvm.vector.insert.nxv4f32.v{lanes}f32",
        "extract": f"@llvm.vector.extract.v{lanes}f32.nxv4f32",
        "dupq": "@llvm.aarch64.sve.dupq.lane.nxv4f32",
        "fmla": "@llvm.aarch64.sve.fmla.lane.nxv4f32",
    }
    return f"""
declare {wide} {names["segment"]}({wide}, {segment}, i64)
declare {wide} {names["insert"]}({wide}, {fixed}, i64)
declare {fixed} {names["extract"]}({wide}, i64)
declare {wide} {names["dupq"]}({wide}, i64)
declare {wide} {names["fmla"]}({wide}, {wide}, {wide}, i32)
define weak {fixed} @{name}({fixed} %total, {fixed} %right, {segment} %factors) alwaysinline {{
  %one = call {wide} {names["segment"]}({wide} poison, {segment} %factors, i64 0)
  %all = call {wide} {names["dupq"]}({wide} %one, i64 0)
  %t = call {wide} {names["insert"]}({wide} poison, {fixed} %total, i64 0)
  %r = call {wide} {names["insert"]}({wide} poison, {fixed} %right, i64 0)
  %sum = call {wide} {names["fmla"]}({wide} %t, {wide} %r, {wide} %all, i32 {lane})
  %result = call {fixed} {names["extract"]}({wide} %sum, i64 0)
  ret {fixed} %result
}}"""


def _spread_text(name: str, element: str, bits: int) -> str:
    (scalar, short), width = _LLVM[element], _width(element)
    wide, fixed, count = scalable(scalar, width), llvm_vector(scalar, bits // width), SEGMENT_BITS // width
    extract = f"@llvm.vector.extract.v{bits // width}{short}.nxv{count}{short}"
    return f"""
declare {fixed} {extract}({wide}, i64)
define weak {fixed} @{name}({scalar} %x) alwaysinline {{
  %one = insertelement {wide} poison, {scalar} %x, i32 0
  %all = shufflevector {wide} %one, {wide} poison, <vscale x {count} x i32> zeroinitializer
  %result = call {fixed} {extract}({wide} %all, i64 0)
  ret {fixed} %result
}}"""
