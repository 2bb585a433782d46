"""Transpose squares of elements in vector registers."""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.relay.types import BITS
from tcomp.tensor.loops import Expression, Statement
from tcomp.tensor.math import dtype_of
from tcomp.tvm_api import tirx


def transpose_square(rows: Sequence[Expression]) -> tuple[list[Statement], list[Expression]]:
    """Statements that bind vectors, and the vectors of the transpose of `rows`, as many as each has lanes.

    The number is a power of two.

    Eklundh, A Fast Computer Method for Matrix Transposing, 1972: step s swaps the off-diagonal blocks of s by
    s elements in each block of 2s by 2s; a pair of rows takes two shuffles a step.
    """
    count, element = len(rows), dtype_of(rows[0])
    # TVM's legalisation cannot bind bfloat16.
    scalar, *lanes = element.split("x")
    dtype = "x".join([BITS.get(scalar, scalar), *lanes])
    bits = element != dtype
    statements: list[Statement] = []

    def bound(value: Expression, name: str) -> Expression:
        variable = tirx.Var(name, dtype)
        statements.append(tirx.Bind(variable, value))
        return variable

    current = [bound(tirx.reinterpret(dtype, row) if bits else row, f"row{i}") for i, row in enumerate(rows)]
    step = 1
    while step < count:
        for first in (i for i in range(count) if not i & step):
            pair = [current[first], current[first + step]]
            upper = [lane if not lane & step else count + lane - step for lane in range(count)]
            lower = [lane + step if not lane & step else count + lane for lane in range(count)]
            current[first] = bound(tirx.Shuffle(pair, upper), f"upper{step}_{first}")
            current[first + step] = bound(tirx.Shuffle(pair, lower), f"lower{step}_{first}")
        step *= 2
    return statements, [tirx.reinterpret(element, row) if bits else row for row in current]
