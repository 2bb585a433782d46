"""Operators that read at indices held in another tensor.

Negative indices count from the end. Indices beyond an axis are an error of the model; the reference
raises, kernels clamp them so that no memory outside the operand is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.shapes import check_axis, static_shape
from tcomp.relay.attributes import integer
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import REQUIRED, FusionKind, Op, Sample, declare
from tcomp.relay.types import INTEGERS, UNSIGNED_INTEGERS, Array, TensorType
from tcomp.tensor.math import dtype_of
from tcomp.tvm_api import Tensor, te, tirx


def check_indices(op: str, indices: TensorType) -> None:
    """Refuse indices that are no integers."""
    if indices.dtype not in INTEGERS:
        raise TypeRuleError(f"`{op}` takes integer indices, not {indices}; insert a cast")


def wrapped_index(index: Any, extent: int) -> Any:
    """`index`, an integer expression, counted from the end when negative, and clamped into the axis."""
    wide = index.astype("int64")
    if dtype_of(index) not in UNSIGNED_INTEGERS:
        wide = tirx.Select(wide < 0, wide + extent, wide)
    inside = tirx.max(tirx.min(wide, tirx.const(extent - 1, "int64")), tirx.const(0, "int64"))
    return inside.astype("int32")


# gather ------------------------------------------------------------------------------------------------


def _infer_gather(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, indices = types
    axis = check_axis("gather", integer(attrs, "axis"), x.rank)
    check_indices("gather", indices)
    return [x.with_shape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))]


def _evaluate_gather(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    return [np.asarray(np.take(arrays[0], arrays[1].astype(np.int64), axis=integer(attrs, "axis")))]


def _compute_gather(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x, indices), axis = inputs, integer(attrs, "axis")
    extent, count = static_shape(x)[axis], len(indices.shape)

    def element(*index: Any) -> Any:
        at = wrapped_index(indices(*index[axis : axis + count]), extent)
        return x(*index[:axis], at, *index[axis + count :])

    return [te.compute(outputs[0].static_shape, element, name="gather")]


# gather_elements ---------------------------------------------------------------------------------------


def _infer_gather_elements(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, indices = types
    check_axis("gather_elements", integer(attrs, "axis"), x.rank)
    check_indices("gather_elements", indices)
    if indices.rank != x.rank:
        raise TypeRuleError(f"`gather_elements` indices {indices} must have the rank of {x}")
    return [x.with_shape(indices.shape)]


def _evaluate_gather_elements(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, indices = arrays
    grid: Array = np.indices(indices.shape)
    at: list[Array] = [grid[a] for a in range(x.ndim)]
    at[integer(attrs, "axis")] = indices.astype(np.int64)
    return [x[tuple(at)]]


def _compute_gather_elements(
    inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]
) -> list[Tensor]:
    (x, indices), axis = inputs, integer(attrs, "axis")
    extent = static_shape(x)[axis]

    def element(*index: Any) -> Any:
        return x(*index[:axis], wrapped_index(indices(*index), extent), *index[axis + 1 :])

    return [te.compute(outputs[0].static_shape, element, name="gather_elements")]


# gather_nd ---------------------------------------------------------------------------------------------


def _infer_gather_nd(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, indices = types
    check_indices("gather_nd", indices)
    batch = integer(attrs, "batch_dims")
    depth = indices.shape[-1] if indices.rank else None
    if not isinstance(depth, int) or not 0 <= batch < indices.rank or batch + depth > x.rank:
        raise TypeRuleError(f"`gather_nd` with batch_dims {batch} cannot index {x} with {indices}")
    if indices.shape[:batch] != x.shape[:batch]:
        raise TypeRuleError(f"`gather_nd` batch dimensions of {x} and {indices} differ")
    return [x.with_shape((*indices.shape[:-1], *x.shape[batch + depth :]))]


def _evaluate_gather_nd(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, indices = arrays
    batch, rows = integer(attrs, "batch_dims"), indices.shape[:-1]
    at = [np.broadcast_to(own, rows) for own in _batch_indices(rows, batch)]
    at += [indices[..., i].astype(np.int64) for i in range(indices.shape[-1])]
    return [np.asarray(x[tuple(at)]).reshape(*rows, *x.shape[batch + indices.shape[-1] :])]


def _batch_indices(rows: tuple[int, ...], batch: int) -> list[Array]:
    return [np.arange(rows[a]).reshape((-1,) + (1,) * (len(rows) - a - 1)) for a in range(batch)]


def _compute_gather_nd(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x, indices), batch = inputs, integer(attrs, "batch_dims")
    shape, rows = static_shape(x), len(indices.shape) - 1
    depth = static_shape(indices)[-1]

    def element(*index: Any) -> Any:
        at = [wrapped_index(indices(*index[:rows], i), shape[batch + i]) for i in range(depth)]
        return x(*index[:batch], *at, *index[rows:])

    return [te.compute(outputs[0].static_shape, element, name="gather_nd")]


# one_hot -----------------------------------------------------------------------------------------------


def _infer_one_hot(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    indices, values = types
    axis, depth = check_axis("one_hot", integer(attrs, "axis"), indices.rank + 1), integer(attrs, "depth")
    if values.shape != (2,) or depth < 0:
        raise TypeRuleError(f"`one_hot` takes values [off, on] and depth >= 0, not {values} and {depth}")
    return [TensorType((*indices.shape[:axis], depth, *indices.shape[axis:]), values.dtype)]


def _evaluate_one_hot(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    indices, values = arrays
    axis, depth = integer(attrs, "axis"), integer(attrs, "depth")
    at = np.expand_dims(indices.astype(np.int64), axis)
    classes = np.arange(depth).reshape([-1 if a == axis else 1 for a in range(at.ndim)])
    return [np.where((at == classes) | (at + depth == classes), values[1], values[0])]


def _compute_one_hot(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (indices, values), axis = inputs, integer(attrs, "axis")
    depth = integer(attrs, "depth")

    def element(*index: Any) -> Any:
        own = indices(*index[:axis], *index[axis + 1 :]).astype("int64")
        hit = tirx.any(own == index[axis], own + depth == index[axis])
        return tirx.Select(hit, values(1), values(0))

    return [te.compute(outputs[0].static_shape, element, name="one_hot")]


# reverse_sequence --------------------------------------------------------------------------------------


def _infer_reverse(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    x, lengths = types
    batch, time = integer(attrs, "batch_axis"), integer(attrs, "time_axis")
    check_indices("reverse_sequence", lengths)
    if {batch, time} != {0, 1} or x.rank < 2:
        raise TypeRuleError(f"`reverse_sequence` axes are {batch} and {time}; they must be 0 and 1")
    if lengths.shape != (x.shape[batch],):
        raise TypeRuleError(f"`reverse_sequence` takes a length for each of the batch in {x}, not {lengths}")
    return [x]


def _evaluate_reverse(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x, lengths = arrays
    time_first = integer(attrs, "time_axis") == 0
    result = np.array(x)
    for row, length in enumerate(lengths.tolist()):
        cut = (slice(length), row) if time_first else (row, slice(length))
        result[cut] = x[cut][::-1]
    return [result]


def _compute_reverse(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    x, lengths = inputs
    batch, time = integer(attrs, "batch_axis"), integer(attrs, "time_axis")
    extent = static_shape(x)[time]

    def element(*index: Any) -> Any:
        length = tirx.min(lengths(index[batch]).astype("int64"), tirx.const(extent, "int64")).astype("int32")
        at = list(index)
        at[time] = tirx.Select(index[time] < length, length - 1 - index[time], index[time])
        return x(*at)

    return [te.compute(outputs[0].static_shape, element, name="reverse_sequence")]


# shape_of ----------------------------------------------------------------------------------------------


def _infer_shape_of(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    return [TensorType((types[0].rank,), "int64")]


def _evaluate_shape_of(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    return [np.array(arrays[0].shape, np.int64)]


def _compute_shape_of(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    extents = static_shape(inputs[0])

    def element(axis: Any) -> Any:
        value = tirx.const(0, "int64")
        for i, extent in enumerate(extents):
            value = tirx.Select(axis == i, tirx.const(extent, "int64"), value)
        return value

    return [te.compute(outputs[0].static_shape, element, name="shape_of")]


# declarations ------------------------------------------------------------------------------------------


def _sample(
    x: tuple[int, ...], indices: object, dtype: str = "float32", index_dtype: str = "int64", **attrs: Attr
) -> Sample:
    given = np.array(indices, index_dtype)
    return Sample((TensorType(x, dtype), TensorType(given.shape, index_dtype)), attrs, inputs={1: given})


def _one_hot_sample(indices: object, dtype: str, **attrs: Attr) -> Sample:
    given = np.array(indices, np.int64)
    return Sample((TensorType(given.shape, "int64"), TensorType((2,), dtype)), attrs, inputs={0: given})


declare(
    Op(
        name="gather",
        infer=_infer_gather,
        evaluate=_evaluate_gather,
        compute=_compute_gather,
        kind=FusionKind.MOVEMENT,
        attrs={"axis": 0},
        arity=(2, 2),
        flops_per_element=0,
        samples=(
            _sample((5, 3), [[0, 4], [-1, 2]], axis=0),
            _sample((2, 4, 3), [3, 1], axis=1),
            _sample((4, 3), 2, "int64", axis=0),
            _sample((4, 3), [2, -3], "float16", "int32", axis=1),
            _sample((4,), [[1]], "bfloat16", "uint8", axis=0),
        ),
    )
)
declare(
    Op(
        name="gather_elements",
        infer=_infer_gather_elements,
        evaluate=_evaluate_gather_elements,
        compute=_compute_gather_elements,
        kind=FusionKind.MOVEMENT,
        attrs={"axis": 0},
        arity=(2, 2),
        flops_per_element=0,
        samples=(
            _sample((3, 4), [[0, 2, 1, -1], [1, 1, 0, 0]], axis=0),
            _sample((3, 4), [[3, 0], [-4, 1], [2, 2]], "int64", "int32", axis=1),
        ),
    )
)
declare(
    Op(
        name="gather_nd",
        infer=_infer_gather_nd,
        evaluate=_evaluate_gather_nd,
        compute=_compute_gather_nd,
        kind=FusionKind.MOVEMENT,
        attrs={"batch_dims": 0},
        arity=(2, 2),
        flops_per_element=0,
        samples=(
            _sample((3, 4), [[0, 1], [-1, 3]]),
            _sample((3, 4, 2), [[[2], [0]], [[1], [-2]]], "int64"),
            _sample((2, 3, 4), [[1], [-1]], batch_dims=1),
            _sample((2, 3, 4), [[[1, 0], [2, 3]], [[0, 0], [1, -1]]], "float16", batch_dims=1),
        ),
    )
)
declare(
    Op(
        name="one_hot",
        infer=_infer_one_hot,
        evaluate=_evaluate_one_hot,
        compute=_compute_one_hot,
        kind=FusionKind.MOVEMENT,
        attrs={"depth": REQUIRED, "axis": REQUIRED},
        arity=(2, 2),
        flops_per_element=0,
        samples=(
            _one_hot_sample([0, 3, -1, 7], "float32", depth=4, axis=1),
            _one_hot_sample([[1, 2], [0, -3]], "int64", depth=3, axis=0),
        ),
    )
)
declare(
    Op(
        name="reverse_sequence",
        infer=_infer_reverse,
        evaluate=_evaluate_reverse,
        compute=_compute_reverse,
        kind=FusionKind.MOVEMENT,
        attrs={"batch_axis": 1, "time_axis": 0},
        arity=(2, 2),
        flops_per_element=0,
        samples=(
            _sample((4, 3), [1, 4, 2]),
            _sample((3, 5, 2), [5, 1, 3], batch_axis=0, time_axis=1),
        ),
    )
)
declare(
    Op(
        name="shape_of",
        infer=_infer_shape_of,
        evaluate=_evaluate_shape_of,
        compute=_compute_shape_of,
        kind=FusionKind.OPAQUE,
        flops_per_element=0,
        samples=(Sample((TensorType((3, 1, 5)),)),),
    )
)
