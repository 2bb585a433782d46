"""Operations that stay one call each while schedules work on them, and become vector code at the end.

A call is written for one element; TVM turns it into a call on vectors with the loop around it, and its rule
makes code of that when TVM lowers intrinsics, for whatever width the schedule chose. Where the target has an
instruction for it, `with_instructions` has it take that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tcomp.target.target import Target
from tcomp.tvm_api import PrimFunc, structural_map, tirx, tvm

Expression = Any
Operands = Sequence[Expression]


def dtype_of(x: Expression) -> str:
    """The element type of an expression, with its lanes: `float32`, `float32x16`."""
    return str(x.ty.dtype)


def call(name: str, dtype: str, *operands: Expression) -> Expression:
    """A call of the intrinsic `name` with a result of `dtype`."""
    return tvm.ir.Call(f"tirx.{name}", list(operands), ret_ty=dtype)


def lanes_of(expression: Expression) -> int:
    return int(tvm.runtime.DataType(dtype_of(expression)).lanes)


def vector(dtype: str, lanes: int) -> str:
    """The type of `lanes` elements: `float32x16`, or `float32` of one."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def spread(value: Expression, lanes: int) -> Expression:
    """A constant in all lanes of a vector."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


@dataclass(frozen=True)
class Instruction:
    """What CPUs with `feature` have for an intrinsic: LLVM functions by the count of lanes they work on.

    TVM cannot call the LLVM intrinsics themselves where operands are vectors of a type that it has no vectors
    of. `text(name, lanes)` is LLVM's language for a function of that name, to be inlined. Other widths are
    computed by plain code.
    """

    feature: str
    lanes: tuple[int, ...]
    text: Callable[[str, int], str]

    def definitions(self, intrinsic: str) -> str:
        return "\n".join(self.text(self.function(intrinsic, n), n) for n in self.lanes)

    def function(self, intrinsic: str, lanes: int) -> str:
        return f"tcomp_{intrinsic}_{self.feature}_{lanes}"


_INSTRUCTIONS: dict[str, tuple[Instruction, ...]] = {}
"""By intrinsic, the best first."""
_FUNCTIONS: dict[str, Callable[[str], str]] = {}
"""By how names begin, the text of a function of such a name."""


def register_functions(beginning: str, text: Callable[[str], str]) -> None:
    """Declare that `text(name)` is LLVM's language for an external function whose name begins like that, to
    be inlined where it is called in functions that went through `with_instructions`."""
    _FUNCTIONS[beginning] = text


def register(
    name: str, lower: Callable[[Operands], Expression], instructions: Sequence[Instruction] = ()
) -> None:
    """Declare a pure intrinsic of that name whose calls become `lower(operands)`, or one of `instructions` in
    functions that went through `with_instructions`."""
    _register(name, lambda found: lower(found.args))
    _INSTRUCTIONS[name] = tuple(instructions)
    for instruction in instructions:

        def by_instruction(found: Any, instruction: Instruction = instruction) -> Expression:
            lanes = lanes_of(found.args[0])
            if lanes not in instruction.lanes:
                return lower(found.args)
            return tirx.call_pure_extern(dtype_of(found), instruction.function(name, lanes), *found.args)

        _register(f"{name}_{instruction.feature}", by_instruction)


def with_instructions(function: PrimFunc, target: Target) -> PrimFunc:
    """`function` with the instructions that `target` has for its intrinsics, and what it calls."""
    definitions: dict[str, str] = {}

    def on_call(found: Any) -> Any:
        name = str(getattr(found.op, "name", "")).removeprefix("tirx.")
        if name == "call_extern":
            called = str(found.args[0].value)
            texts = (text for beginning, text in _FUNCTIONS.items() if called.startswith(beginning))
            definitions.update((called, text(called)) for text in texts)
        fitting = (i for i in _INSTRUCTIONS.get(name, ()) if target.has(i.feature))
        instruction = next(fitting, None)
        if instruction is None:
            return found
        definitions[name] = instruction.definitions(name)
        return call(f"{name}_{instruction.feature}", dtype_of(found), *found.args)

    body = structural_map(function.body, (tvm.ir.Call, on_call))
    for text in definitions.values():
        body = tirx.AttrStmt("default", "pragma_import_llvm", text, body)
    return function.with_body(body) if definitions else function


def llvm_vector(element: str, lanes: int) -> str:
    """LLVM's name of a vector type: `<4 x float>`, or `float` of one."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def by_element(mnemonic: str, wide: str, narrow: str) -> Callable[[str, int], str]:
    """The text of ARM's dot products of groups: `mnemonic total.4s, right.16b, left.4b[0]`.

    `wide` is LLVM's type of a sum, `narrow` the suffix of an element. All lanes of the left operand are the
    same; LLVM would spread it into a register before, which takes the ports of the products, so that the
    instruction is written as it stands.
    """
    per_group = 4 // (1 if narrow == "b" else 2)

    def text(name: str, lanes: int) -> str:
        total, groups = llvm_vector(wide, lanes), llvm_vector("i32", lanes)
        elements = f"{lanes * per_group}{narrow}"
        code = f"{mnemonic} $0.{lanes}s, $2.{elements}, $3.{per_group}{narrow}[0]"
        return f"""
define weak {total} @{name}({total} %total, {groups} %left, {groups} %right) alwaysinline {{
  %bits = extractelement {groups} %left, i32 0
  %element = bitcast i32 %bits to float
  %sum = call {total} asm "{code}", "=w,0,w,w"({total} %total, {groups} %right, float %element)
  ret {total} %sum
}}"""

    return text


def _register(name: str, rule: Callable[[Any], Expression]) -> None:
    """The same plain code serves CPUs and GPUs."""
    operator = f"tirx.{name}"
    tvm.ir.register_op_attr(operator, "TCallEffectKind", tirx.expr.CallEffectKind.Pure.value, level=99)
    tvm.ir.register_op_attr(operator, "TScriptPrinterName", name, level=99)
    tvm.ir.register_op_attr(operator, "TVectorizable", True, level=99)
    for kind in ("llvm", "cuda"):
        tirx.register_intrin_lowering(operator, target=kind, f=rule, level=99)
