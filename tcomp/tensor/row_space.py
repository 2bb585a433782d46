"""Rows and columns of a reduction: which elements belong to one result, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tcomp.relay.attributes import flag, integer, integers
from tcomp.relay.graph import Node

Index = tuple[Any, ...]


@dataclass(frozen=True)
class RowSpace:
    """An anchor's elements as rows times columns.

    `full(row, column)` is an index into a tensor of the anchor's input shape, `reduced(row)` one into its
    output where that has one element a row. `innermost_is_column` says what lies contiguous in memory.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    full_shape: tuple[int, ...]
    reduced_shape: tuple[int, ...] | None
    full: Callable[[Index, Index], Index]
    reduced: Callable[[Index], Index]
    innermost_is_column: bool


def row_space(anchor: Node) -> RowSpace | None:
    """The row space of a reduction operator, None when it is none that is known here."""
    shape = anchor.inputs[0].type.static_shape
    if anchor.op == "lrn":
        return RowSpace(shape, (), shape, shape, lambda r, c: r, lambda r: r, False)
    if anchor.op == "group_norm":
        return _group_space(shape, integer(anchor.attrs, "groups"))
    axes = _axes(anchor, len(shape))
    if not axes:
        return None
    reduces = "keepdims" in anchor.attrs
    return _axes_space(shape, axes, reduces, reduces and flag(anchor.attrs, "keepdims"))


def _axes(anchor: Node, rank: int) -> tuple[int, ...]:
    if "axes" in anchor.attrs:
        return tuple(sorted(integers(anchor.attrs, "axes")))
    if anchor.op in ("layer_norm", "rms_norm"):
        return tuple(range(integer(anchor.attrs, "axis"), rank))
    return (integer(anchor.attrs, "axis"),) if "axis" in anchor.attrs else ()


def _axes_space(shape: tuple[int, ...], axes: Sequence[int], reduces: bool, keepdims: bool) -> RowSpace:
    kept = [i for i in range(len(shape)) if i not in axes]

    def full(row: Index, column: Index) -> Index:
        of_row, of_column = iter(row), iter(column)
        return tuple(next(of_column) if i in axes else next(of_row) for i in range(len(shape)))

    def reduced(row: Index) -> Index:
        return full(row, (0,) * len(axes)) if keepdims else row

    reduced_shape = tuple(1 if i in axes else d for i, d in enumerate(shape) if keepdims or i not in axes)
    inner = max((i for i, d in enumerate(shape) if d > 1), default=len(shape) - 1)
    return RowSpace(
        tuple(shape[i] for i in kept),
        tuple(shape[i] for i in axes),
        shape,
        reduced_shape if reduces else None,
        full,
        reduced,
        inner in axes,
    )


def _group_space(shape: tuple[int, ...], groups: int) -> RowSpace:
    size = shape[1] // groups

    def full(row: Index, column: Index) -> Index:
        return (row[0], row[1] * size + column[0], *column[1:])

    rows, columns = (shape[0], groups), (size, *shape[2:])
    return RowSpace(rows, columns, shape, None, full, lambda r: r, True)
