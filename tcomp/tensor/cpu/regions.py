"""Cut a tensor into regions in which its elements are computed without a question.

Concatenations, padding and layout changes choose by the position what to load and find the place by division.
In a region where each choice is settled and each division is a digit of the position, loads have strides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tcomp.tensor.access import (
    Region,
    Span,
    Symbolic,
    symbolic,
    whole,
)
from tcomp.tensor.loops import Expression, TensorMap
from tcomp.tvm_api import Tensor, structural_walk, tirx, tvm

MOST_REGIONS = 48
"""Each region is a loop nest of its own; a tensor that needs more stays in one piece."""

_NARROWEST = 4

_COMPARISONS: Any = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)
_DIVISIONS: Any = (tirx.FloorDiv, tirx.FloorMod)


@dataclass(frozen=True)
class _Linear:
    """`constant + sum(factors[i] * digit i)`."""

    factors: tuple[int, ...]
    constant: int


def regions(tensor: Tensor, buffers: TensorMap) -> list[Region]:
    """Regions that together are `tensor`."""
    pending, done = [whole(tensor)], list[Region]()
    while pending:
        region = pending.pop()
        parts = next(_refinements(symbolic(tensor, buffers, region), region), None)
        if parts is None:
            done.append(region)
        else:
            pending += parts
        if len(pending) + len(done) > MOST_REGIONS:
            return [whole(tensor)]
    return sorted(done, key=lambda region: [span.begin for span in region])


def _refinements(element: Symbolic, region: Region) -> Iterator[list[Region]]:
    """Ways to cut `region`, or to count it in other digits, that settle something."""
    comparisons, divisions = _questions(element)
    axes = [axis for axis, span in enumerate(region) for _ in span.digits]
    for left, right in comparisons:
        difference = _linear(left - right, element.variables)
        cut = _threshold(difference, element.extents) if difference is not None else None
        if cut is not None and _is_worthwhile(region, axes[cut[0]], cut[1]):
            yield _cut(region, axes[cut[0]], cut[1])
    for dividend, divisor in divisions:
        linear = _linear(dividend, element.variables)
        if linear is not None:
            yield from _digits(linear, divisor, element.extents, axes, region)


def _questions(
    element: Symbolic,
) -> tuple[list[tuple[Expression, Expression]], list[tuple[Expression, int]]]:
    """Operands of comparisons, and dividends of divisions by constants."""
    comparisons: list[tuple[Expression, Expression]] = []
    divisions: list[tuple[Expression, int]] = []

    def on_comparison(node: Any) -> None:
        comparisons.append((node.a, node.b))

    def on_division(node: Any) -> None:
        if isinstance(node.b, tirx.IntImm):
            divisions.append((node.a, int(node.b)))

    def on_guard(call: Any) -> None:
        if call.op.name == "prim.if_then_else":
            structural_walk(call.args[0], (_COMPARISONS, on_comparison))

    def on_load(load: Any) -> None:
        for index in load.indices:
            structural_walk(index, (_DIVISIONS, on_division))

    for expression in element.expressions:
        structural_walk(expression, (tvm.ir.Call, on_guard))
        structural_walk(expression, (tvm.ir.expr.TensorLoad, on_load))
    return comparisons, divisions


def _linear(expression: Expression, variables: Sequence[Any]) -> _Linear | None:
    found = tvm.sym.detect_linear_equation(expression, list(variables))
    if not found or not all(isinstance(c, tirx.IntImm) for c in found):
        return None
    *factors, constant = (int(c) for c in found)
    return _Linear(tuple(factors), constant)


def _threshold(difference: _Linear, extents: Sequence[int]) -> tuple[int, int] | None:
    """A digit and its first value at which the sign of `difference` may change, or no longer change."""
    by_factor = sorted(range(len(extents)), key=lambda d: -abs(difference.factors[d]))
    for digit in by_factor:
        factor, extent = difference.factors[digit], extents[digit]
        if not factor or extent == 1:
            continue
        reach = [
            (e - 1) * f
            for d, (f, e) in enumerate(zip(difference.factors, extents, strict=True))
            if d != digit
        ]
        low = difference.constant + sum(r for r in reach if r < 0)
        high = difference.constant + sum(r for r in reach if r > 0)
        crossings = (-high, 1 - high, -low, 1 - low) if factor > 0 else (low, 1 + low, high, 1 + high)
        for crossing in crossings:
            at = -(-crossing // abs(factor))
            if 0 < at < extent:
                return digit, at
    return None


def _is_worthwhile(region: Region, axis: int, at: int) -> bool:
    """Whether no part of the innermost axis becomes so narrow that vectors have no room in it."""
    span = region[axis]
    narrow = axis == len(region) - 1 and min(at, span.extent - at) < _NARROWEST
    return len(span.digits) == 1 and not narrow


def _cut(region: Region, axis: int, at: int) -> list[Region]:
    """Both parts of `region`, cut `at` positions behind the start of its span of `axis`."""
    span = region[axis]
    parts = (Span(span.begin, (at,)), Span(span.begin + at, (span.extent - at,)))
    return [(*region[:axis], part, *region[axis + 1 :]) for part in parts]


def _digits(
    dividend: _Linear, divisor: int, extents: Sequence[int], axes: Sequence[int], region: Region
) -> Iterator[list[Region]]:
    """Let the quotient be constant, or a digit of its own: the one digit that is no multiple of `divisor`
    starts at a multiple and ends at one, or before the first."""
    loose = [
        d for d, (f, e) in enumerate(zip(dividend.factors, extents, strict=True)) if f % divisor and e > 1
    ]
    if len(loose) != 1 or dividend.factors[loose[0]] != 1 or len(region[axes[loose[0]]].digits) != 1:
        return
    axis, extent = axes[loose[0]], extents[loose[0]]
    ahead, whole_part = -dividend.constant % divisor, extent // divisor * divisor
    if 0 < ahead < extent:
        yield _cut(region, axis, ahead)
    elif ahead == 0 and 0 < whole_part < extent:
        yield _cut(region, axis, whole_part)
    elif ahead == 0 and whole_part > divisor:
        span = replace(region[axis], digits=(extent // divisor, divisor))
        yield [(*region[:axis], span, *region[axis + 1 :])]
