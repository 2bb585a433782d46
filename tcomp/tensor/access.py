"""How an output's elements reach memory: the strides of every load, and the loops that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tcomp.relay.types import BITS
from tcomp.tensor.loops import Elements, Expression, TensorMap, constant
from tcomp.tvm_api import Tensor, structural_walk, tirx, tvm


@dataclass(frozen=True)
class Span:
    """A part of an axis: from `begin` on, counted by `digits`, the most significant first.

    `Span(3, (4, 16))` are the positions 3 to 66, walked by two loops of 4 and 16 steps.
    """

    begin: int
    digits: tuple[int, ...]

    @property
    def extent(self) -> int:
        return prod(self.digits)

    def at(self, values: Sequence[Expression]) -> Expression:
        """The position on the axis that the values of the digits stand for."""
        position: Expression = constant(0)
        for value, digit in zip(values, self.digits, strict=True):
            position = position * digit + value
        return position + self.begin


Region = tuple[Span, ...]
"""A part of a tensor: a span of each axis."""


def whole(tensor: Tensor) -> Region:
    return tuple(Span(0, (int(d),)) for d in tensor.shape)


def position(region: Region, values: Sequence[Expression]) -> list[Expression]:
    """The tensor's index at which the digits of all spans of `region`, in order, have these values."""
    index: list[Expression] = []
    rest = list(values)
    for span in region:
        index.append(span.at(rest[: len(span.digits)]))
        rest = rest[len(span.digits) :]
    return index


@dataclass(frozen=True)
class Access:
    """Loads and stores of a region of one output, one axis for each digit of its spans.

    `strides` holds, for the store and each load that is linear in the digits, elements per step of each axis;
    `all_linear` says whether every load is; `is_move` whether the element is a load and nothing else.
    """

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    all_linear: bool
    is_move: bool

    def merged(self) -> list[list[int]]:
        """Axes in groups that every load and the store walk as one; axes of a single step are in none."""
        groups: list[list[int]] = []
        for axis, extent in enumerate(self.shape):
            if extent == 1:
                continue
            if groups and self._walks_on(groups[-1][-1], axis):
                groups[-1].append(axis)
            else:
                groups.append([axis])
        return groups

    def _walks_on(self, axis: int, following: int) -> bool:
        return self.all_linear and all(s[axis] == s[following] * self.shape[following] for s in self.strides)


@dataclass(frozen=True)
class Symbolic:
    """One element of a tensor in a region, in terms of a variable for each digit."""

    variables: tuple[Any, ...]
    extents: tuple[int, ...]
    index: tuple[Expression, ...]
    expressions: tuple[Any, ...]
    """The element's value and what is computed before it."""


def symbolic(tensor: Tensor, buffers: TensorMap, region: Region) -> Symbolic:
    """An element of `tensor` anywhere in `region`, with what is known of the digits' ranges put to use."""
    extents = tuple(d for span in region for d in span.digits)
    variables = tuple(tirx.Var(f"i{axis}", "int32") for axis in range(len(extents)))
    ranges = list(zip(variables, extents, strict=True))
    elements = Elements(buffers, ranges)
    index = position(region, [v if e > 1 else constant(0) for v, e in ranges])
    value = elements.element(tensor, index)
    return Symbolic(variables, extents, tuple(index), (*elements.statements, value))


def access_of(tensor: Tensor, buffers: TensorMap, region: Region) -> Access:
    """The loads that one element of `tensor` in `region` makes, and its store."""
    element = symbolic(tensor, buffers, region)
    shape = [int(d) for d in tensor.shape]
    found: list[list[int] | None] = [_strides(element.index, shape, element.variables)]

    def on_load(load: Any) -> None:
        found.append(_strides(load.indices, load.source.shape, element.variables))

    for expression in element.expressions:
        structural_walk(expression, (tvm.ir.expr.TensorLoad, on_load))
    linear = tuple(tuple(s) for s in found if s is not None)
    (*before, value) = element.expressions
    is_move = isinstance(value, tvm.ir.expr.TensorLoad) and not before
    return Access(element.extents, linear, len(linear) == len(found), is_move)


def _strides(indices: Sequence[Any], shape: Sequence[Any], variables: Sequence[Any]) -> list[int] | None:
    offset: Expression = constant(0)
    for index, extent in zip(indices, shape, strict=True):
        offset = offset * extent + index
    return coefficients(offset, variables)


def coefficients(expression: Expression, variables: Sequence[Any]) -> list[int] | None:
    """Factors of the variables in a linear `expression`; None when it is not linear."""
    found = tvm.sym.detect_linear_equation(expression, list(variables))
    if not found or not all(isinstance(c, tirx.IntImm) for c in found):
        return None
    return [int(c) for c in found[: len(variables)]]


def vector_load(
    elements: Elements, tensor: Tensor, index: Sequence[Expression], lanes: int
) -> Expression | None:
    """`lanes` elements of `tensor` along its last axis from `index`, in one load.

    None when they are computed, or lie apart in memory, or are of `BITS`, which TVM cannot keep in variables.
    """
    return None if str(tensor.dtype) in BITS else load_along(elements, tensor, index, lanes)


def load_along(
    elements: Elements, tensor: Tensor, index: Sequence[Expression], lanes: int
) -> Expression | None:
    """As `vector_load`, of any type."""
    *outer, first = index
    along = tirx.Var("along", "int32")
    value = elements.element(tensor, [*outer, along])
    if elements.statements or not isinstance(value, tvm.ir.expr.TensorLoad):
        return None
    *axes, last = value.indices
    steps = [tvm.sym.detect_linear_equation(i, [along]) for i in (*axes, last)]
    strides = [int(s[0]) if s and isinstance(s[0], tirx.IntImm) else None for s in steps]
    if strides != [0] * len(axes) + [1]:
        return None
    return tirx.BufferLoad(value.source, [*axes, tirx.Ramp(steps[-1][1] + first, 1, lanes)])
