"""Which accesses to memory can be vectors: neighbours that begin at a multiple of the vector's length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from tcomp.tensor.loops import (
    Expression,
    Statement,
    constant,
    loops_around,
    under,
)
from tcomp.tvm_api import structural_walk, tirx, tvm

VECTOR_TYPES = ("float32", "float16")
"""Types that CUDA has vectors of which TVM computes with."""

At = Callable[[Expression], Statement]


def vector_lanes(at: At, extent: int, most: int) -> int:
    """The widest vector, a power of two up to `most`, in which `at` can do its loads and stores.

    `at(position)` is the statement for one position of an axis of `extent`. Each of its accesses must be the
    same for all lanes, or to neighbours that lie as vectors may; vectors begin at multiples of their length.
    """
    while most > 1 and not (extent % most == 0 and _is_vector(at, extent, most)):
        most //= 2
    return most


def lies_in_chunks(at: At, extent: int, size: int) -> bool:
    """Whether each `size` neighbours, from a multiple of `size` on, lie side by side in memory, and begin at
    such a multiple there, in all accesses of `at`, which is as that of `vector_lanes`."""
    if extent % size:
        return False
    found = _in_vectors(at, extent, size)
    return bool(found) and all(a.step == 1 and a.multiple % size == 0 for a in found)


def is_contiguous(at: At, extent: int) -> bool:
    """Whether some access of `at` walks through memory step by step, and none in another way."""
    position = tirx.Var("position", "int32")
    steps = [a.step for a in _accesses(under(position, constant(extent), at), position, [(position, extent)])]
    return 1 in steps and all(step in (0, 1) for step in steps)


def _is_vector(at: At, extent: int, lanes: int) -> bool:
    found = _in_vectors(at, extent, lanes)
    return all(a.step == 0 or (a.step == 1 and a.wide and a.multiple % lanes == 0) for a in found)


def _in_vectors(at: At, extent: int, lanes: int) -> list[_Access]:
    """The accesses of `at`, their variable being the lane of a vector."""
    vector, lane = tirx.Var("vector", "int32"), tirx.Var("lane", "int32")
    vectors = extent // lanes

    def inner(v: Expression) -> Statement:
        return under(lane, constant(lanes), lambda i: at(v * lanes + i))

    statement = under(vector, constant(vectors), inner)
    return _accesses(statement, lane, [(vector, vectors), (lane, lanes)])


@dataclass(frozen=True)
class _Access:
    """A load or store: how far it moves with a variable, and what the position without it is a multiple of.

    `step` is None where it is not the same everywhere. `wide` says whether TVM has vectors of the type.
    """

    step: int | None
    multiple: int
    wide: bool


def _accesses(statement: Statement, variable: Any, ranges: Sequence[tuple[Any, int]]) -> list[_Access]:
    analyzer = tvm.sym.Analyzer()
    known = [*loops_around(), *ranges]
    for index, extent in known:
        analyzer.bind(index, tvm.ir.Range(0, extent))
    found: list[_Access] = []

    def add(buffer: Any, indices: Sequence[Expression]) -> None:
        offset: Expression = constant(0)
        for index, extent in zip(indices, buffer.shape, strict=True):
            offset = offset * extent + index
        offset = analyzer.simplify(offset)
        parts = tvm.sym.detect_linear_equation(offset, [variable])
        if not parts or not isinstance(parts[0], tirx.IntImm) or not _uses_only(offset, known):
            found.append(_Access(None, 1, False))
            return
        begin = analyzer.modular_set(parts[1])
        multiple = gcd(int(begin.coeff), int(begin.base))
        found.append(_Access(int(parts[0]), multiple, str(buffer.dtype) in VECTOR_TYPES))

    def on_load(load: Any) -> None:
        add(load.source, load.indices)

    def on_store(store: Any) -> None:
        add(store.buffer, store.indices)

    structural_walk(statement, [(tvm.ir.expr.TensorLoad, on_load), (tirx.BufferStore, on_store)])
    return found


def _uses_only(expression: Expression, known: Sequence[tuple[Any, Any]]) -> bool:
    """Whether `expression` has no other variables: values bound in the statement may hide how they vary."""
    others: list[Any] = []

    def on_variable(found: Any) -> None:
        if not any(found.same_as(variable) for variable, _ in known):
            others.append(found)

    structural_walk(expression, (tvm.ir.Var, on_variable))
    return not others


def anywhere(extents: Sequence[int], body: Callable[[list[Expression]], Any]) -> Any:
    """`body(index)` for an index of which nothing is known but that it lies in `extents`."""

    def level(index: list[Expression]) -> Any:
        if len(index) == len(extents):
            return body(index)
        variable = tirx.Var("anywhere", "int32")
        return under(variable, constant(extents[len(index)]), lambda i: level([*index, i]))

    return level([])
