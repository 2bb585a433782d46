"""Operations that stay one call each while schedules work on them, and become vector code at the end.

A call is written for one element; TVM turns it into a call on vectors with the loop around it, and its rule
makes code of that when TVM lowers intrinsics, for whatever width the schedule chose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tcomp.tvm_api import tirx, tvm

Expression = Any


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


def register(name: str, lower: Callable[[Sequence[Expression]], Expression]) -> None:
    """Declare a pure intrinsic of that name whose calls become `lower(operands)`."""
    operator = f"tirx.{name}"
    tvm.ir.register_op_attr(operator, "TCallEffectKind", tirx.expr.CallEffectKind.Pure.value, level=99)
    tvm.ir.register_op_attr(operator, "TScriptPrinterName", name, level=99)
    tvm.ir.register_op_attr(operator, "TVectorizable", True, level=99)

    def rule(found: Any) -> Expression:
        return lower(found.args)

    tirx.register_intrin_lowering(operator, target="llvm", f=rule, level=99)
