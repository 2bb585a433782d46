"""Operators that write at indices held in another tensor, one update after the other.

Updates of the same element are applied in order, so without a reduction the last one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.index import check_indices, wrapped_index
from tcomp.ops.shapes import check_axis, static_shape
from tcomp.relay.attributes import integer, one_of
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import Cost, FusionKind, Op, Sample, declare
from tcomp.relay.types import Array, TensorType
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    extern,
    loop,
    sequence,
)
from tcomp.tvm_api import Tensor, tirx

REDUCTIONS = ("none", "add", "mul", "max", "min")
_ARRAY_UPDATE: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
_UPDATE: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": lambda old, new: tirx.max(old, new),
    "min": lambda old, new: tirx.min(old, new),
}


def _infer_elements(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, indices, updates = types
    check_axis("scatter_elements", integer(attrs, "axis"), x.rank)
    check_indices("scatter_elements", indices)
    _check_reduction("scatter_elements", x, updates, attrs)
    if indices.shape != updates.shape or indices.rank != x.rank:
        raise TypeRuleError(f"`scatter_elements` of {updates} at {indices} into {x}: the shapes do not fit")
    return [x]


def _infer_nd(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, indices, updates = types
    check_indices("scatter_nd", indices)
    _check_reduction("scatter_nd", x, updates, attrs)
    depth = indices.shape[-1] if indices.rank else None
    if not isinstance(depth, int) or depth > x.rank:
        raise TypeRuleError(f"`scatter_nd` cannot index {x} with {indices}")
    if updates.shape != (*indices.shape[:-1], *x.shape[depth:]):
        raise TypeRuleError(f"`scatter_nd` of {updates} at {indices} into {x}: the shapes do not fit")
    return [x]


def _check_reduction(op: str, x: TensorType, updates: TensorType, attrs: Attrs) -> None:
    reduction = one_of(attrs, "reduction", REDUCTIONS)
    if updates.dtype != x.dtype:
        raise TypeRuleError(f"`{op}` of {updates} into {x}: the element types differ; insert a cast")
    if x.dtype == "bool" and reduction != "none":
        raise TypeRuleError(f"`{op}` with reduction {reduction} takes numbers, not bool")


def _evaluate_elements(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, indices, updates = arrays
    grid: Array = np.indices(indices.shape)
    at = [grid[a] for a in range(x.ndim)]
    at[integer(attrs, "axis")] = indices.astype(np.int64)
    return [_updated(x, tuple(at), updates, attrs)]


def _evaluate_nd(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, indices, updates = arrays
    at = tuple(indices[..., i].astype(np.int64) for i in range(indices.shape[-1]))
    return [_updated(x, at, updates, attrs)]


def _updated(x: Array, at: tuple[Array, ...], updates: Array, attrs: Attrs) -> Array:
    result = np.array(x)
    reduction = one_of(attrs, "reduction", REDUCTIONS)
    if reduction == "none":
        result[at] = updates
    else:
        _ARRAY_UPDATE[reduction].at(result, at, updates)
    return result


Place = Callable[[Buffer, Sequence[Expression]], Sequence[Expression]]


def _scatter(
    inputs: Sequence[Tensor], attrs: Attrs, output: TensorType, name: str, place: Place
) -> list[Tensor]:
    """The first operand, updated at `place(indices, index)` by the element `index` of the third."""
    shape, update_shape = output.static_shape, static_shape(inputs[2])
    update = _UPDATE[one_of(attrs, "reduction", REDUCTIONS)]

    def build(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Statement:
        source, indices, updates = ins

        def copy(flat: Expression) -> Statement:
            index = _unravel(flat, shape)
            return tirx.BufferStore(outs[0], tirx.BufferLoad(source, index), index)

        def apply(flat: Expression) -> Statement:
            index = _unravel(flat, update_shape)
            target = place(indices, index)
            new = update(tirx.BufferLoad(outs[0], target), tirx.BufferLoad(updates, index))
            return tirx.BufferStore(outs[0], new, target)

        return sequence([loop(prod(shape), copy, "copy"), loop(prod(update_shape), apply, "update")])

    return extern(inputs, [(shape, output.dtype)], build, name)


def _unravel(flat: Expression, shape: Sequence[int]) -> list[Expression]:
    index: list[Expression] = []
    for extent in reversed(shape):
        index.insert(0, tirx.floormod(flat, tirx.const(extent, "int32")))
        flat = tirx.floordiv(flat, tirx.const(extent, "int32"))
    return index


def _compute_elements(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    axis = integer(attrs, "axis")
    extent = outputs[0].static_shape[axis]

    def place(indices: Buffer, index: Sequence[Expression]) -> Sequence[Expression]:
        at = wrapped_index(tirx.BufferLoad(indices, list(index)), extent)
        return [*index[:axis], at, *index[axis + 1 :]]

    return _scatter(inputs, attrs, outputs[0], "scatter_elements", place)


def _compute_nd(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    shape, rows = outputs[0].static_shape, len(inputs[1].shape) - 1
    depth = static_shape(inputs[1])[-1]

    def place(indices: Buffer, index: Sequence[Expression]) -> Sequence[Expression]:
        row = list(index[:rows])
        found = [tirx.BufferLoad(indices, [*row, tirx.const(i, "int32")]) for i in range(depth)]
        at = [wrapped_index(i, extent) for i, extent in zip(found, shape, strict=False)]
        return [*at, *index[rows:]]

    return _scatter(inputs, attrs, outputs[0], "scatter_nd", place)


def _cost(inputs: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]) -> Cost:
    updated = 0 if one_of(attrs, "reduction", REDUCTIONS) == "none" else prod(inputs[2].static_shape)
    return Cost(updated, sum(t.nbytes for t in (*inputs, *outputs)))


def _sample(
    x: tuple[int, ...], indices: object, updates: tuple[int, ...], dtype: str = "float32", **attrs: Attr
) -> Sample:
    given = np.array(indices, np.int64)
    types = (TensorType(x, dtype), TensorType(given.shape, "int64"), TensorType(updates, dtype))
    return Sample(types, attrs, inputs={1: given})


_ELEMENT_SAMPLES = tuple(
    _sample((3, 4), [[0, 2, 1, -1], [1, 2, 0, 0]], (2, 4), axis=0, reduction=r) for r in REDUCTIONS
)
_ND_SAMPLES = tuple(_sample((3, 4), [[0], [2], [0]], (3, 4), reduction=r) for r in REDUCTIONS)

declare(
    Op(
        name="scatter_elements",
        infer=_infer_elements,
        evaluate=_evaluate_elements,
        compute=_compute_elements,
        kind=FusionKind.OPAQUE,
        attrs={"axis": 0, "reduction": "none"},
        arity=(3, 3),
        cost=_cost,
        samples=(
            *_ELEMENT_SAMPLES,
            _sample((2, 5), [[4, 0], [-5, 0]], (2, 2), "int64", axis=1, reduction="add"),
            _sample((4,), [1, 1, 3], (3,), "float16", axis=0),
            _sample((3,), [2, 0], (2,), "bool", axis=0),
        ),
    )
)
declare(
    Op(
        name="scatter_nd",
        infer=_infer_nd,
        evaluate=_evaluate_nd,
        compute=_compute_nd,
        kind=FusionKind.OPAQUE,
        attrs={"reduction": "none"},
        arity=(3, 3),
        cost=_cost,
        samples=(
            *_ND_SAMPLES,
            _sample((3, 4), [[0, 1], [-1, 3]], (2,), "int64"),
            _sample((2, 3, 2), [[[0, 0], [1, 2]]], (1, 2, 2), "bfloat16"),
        ),
    )
)
