"""Shapes as values and views: Shape, Reshape, Squeeze, Flatten, Expand, constants, Range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.axes import broadcast_dims, normalise_axes, normalise_axis, squeeze, unsqueeze
from tcomp.frontend.onnx.context import SHAPE_REMEDY, Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.frontend.onnx.tensors import dtype_of
from tcomp.relay.dims import Dim, product
from tcomp.relay.graph import Constant, Value
from tcomp.relay.types import Array


@converter("Shape")
def shape(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    rank = x.type.rank
    begin, end = _clamped(node.integer("start", 0), rank), _clamped(node.integer("end", rank), rank)
    if all(isinstance(d, int) for d in x.shape[begin:end]):
        return ctx.constant(np.array(x.shape[begin:end], np.int64))
    return ctx.op("slice", ctx.shape_of(x), begin=(begin,), end=(end,), strides=(1,))


def _clamped(position: int, rank: int) -> int:
    return min(max(position + rank if position < 0 else position, 0), rank)


@converter("Size")
def size(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op("reduce_prod", ctx.shape_of(node.input(0)), axes=(0,), keepdims=False)


@converter("Reshape")
def reshape(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    wanted = ctx.dims(node.input(1), "shape")
    return ctx.reshape(x, resolve_reshape(x, wanted, bool(node.integer("allowzero", 0))))


def resolve_reshape(x: Value, wanted: Sequence[Dim], zero_is_size: bool) -> tuple[Dim, ...]:
    """`wanted` with 0 (copy the input's size, unless `zero_is_size`) and one -1 (what is left) filled in."""
    result: list[Dim] = []
    for axis, dim in enumerate(wanted):
        if dim == 0 and not zero_is_size:
            if axis >= x.type.rank:
                raise ModelError(f"shape {_shown(wanted)} copies axis {axis}, which {x.type} does not have")
            dim = x.shape[axis]
        result.append(dim)
    if any(isinstance(d, int) and d < -1 for d in result) or result.count(-1) > 1:
        raise ModelError(f"shape {_shown(wanted)} for {x.type} has more than one unknown size")
    if -1 in result:
        rest = product(d for d in result if d != -1)
        if rest == 0:
            raise ModelError(f"shape {_shown(wanted)} for {x.type} has an unknown size beside an empty one")
        result[result.index(-1)] = x.type.size // rest
    if all(isinstance(d, int) for d in (*result, *x.shape)) and product(result) != x.type.size:
        raise ModelError(f"{x.type} cannot have the shape {_shown(wanted)}: the numbers of elements differ")
    return tuple(result)


def _shown(dims: Sequence[Dim]) -> str:
    return "[" + ",".join(str(d) for d in dims) + "]"


@converter("Flatten")
def flatten(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    axis = (
        normalise_axis(node.integer("axis", 1), x, extra=1)
        if node.integer("axis", 1) >= 0
        else (normalise_axis(node.integer("axis"), x))
    )
    return ctx.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@converter("Squeeze")
def squeeze_by_attribute(ctx: Context, node: OnnxNode) -> Value:
    return _squeeze(ctx, node.input(0), node.optional_integers("axes"))


@converter("Squeeze", since=13)
def squeeze_by_input(ctx: Context, node: OnnxNode) -> Value:
    axes = node.optional(1)
    return _squeeze(ctx, node.input(0), None if axes is None else ctx.integers(axes, "axes"))


def _squeeze(ctx: Context, x: Value, axes: tuple[int, ...] | None) -> Value:
    """Remove `axes`, or every axis of size 1."""
    if axes is None:
        return squeeze(ctx, x, [i for i, d in enumerate(x.shape) if d == 1])
    normal = normalise_axes(axes, x)
    wrong = [i for i in normal if isinstance(x.shape[i], int) and x.shape[i] != 1]
    if wrong:
        raise ModelError(f"axis {wrong[0]} of {x.type} cannot be squeezed: its size is not 1")
    return squeeze(ctx, x, normal)


@converter("Unsqueeze")
def unsqueeze_by_attribute(ctx: Context, node: OnnxNode) -> Value:
    axes = node.integers("axes")
    return unsqueeze(ctx, node.input(0), normalise_axes(axes, node.input(0), extra=len(axes)))


@converter("Unsqueeze", since=13)
def unsqueeze_by_input(ctx: Context, node: OnnxNode) -> Value:
    axes = ctx.integers(node.input(1), "axes")
    return unsqueeze(ctx, node.input(0), normalise_axes(axes, node.input(0), extra=len(axes)))


@converter("Expand")
def expand(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    return ctx.broadcast_to(x, broadcast_dims(x.shape, ctx.dims(node.input(1), "shape")))


@converter("Constant")
def constant(ctx: Context, node: OnnxNode) -> Value:
    for name, dtype in (
        ("value", None),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in node.attrs:
            return ctx.constant(np.asarray(node.attrs[name], dtype))
    raise UnsupportedError(f"a Constant of {', '.join(node.attrs) or 'no value'} is not supported")


@converter("ConstantOfShape")
def constant_of_shape(ctx: Context, node: OnnxNode) -> Value:
    element: Array = np.asarray(node.attrs.get("value", np.zeros(1, np.float32))).reshape(())
    return ctx.broadcast_to(ctx.constant(element), ctx.dims(node.input(0), "shape"))


@converter("Range")
def arange(ctx: Context, node: OnnxNode) -> Value:
    """Known bounds give a constant; a symbolic length is a running sum of ones, scaled and shifted."""
    start, limit, delta = node.input(0), node.input(1), node.input(2)
    if isinstance(start, Constant) and isinstance(limit, Constant) and isinstance(delta, Constant):
        first, last, step = (v.data.reshape(()).item() for v in (start, limit, delta))
        count = max(math.ceil((last - first) / step), 0)
        values: Array = np.asarray(first + step * np.arange(count), start.data.dtype)
        return ctx.constant(values)
    (step,) = ctx.integers(delta, "delta")
    if step != 1:
        raise UnsupportedError(
            f"its length depends on a symbolic dimension and its delta is {step}; {SHAPE_REMEDY}"
        )
    (first,), (last,) = ctx.dims(start, "start"), ctx.dims(limit, "limit")
    ones = ctx.broadcast_to(ctx.constant(1, start.dtype), (last - first,))
    return ctx.op("add", ctx.op("cumsum", ones, axis=0, exclusive=True), ctx.reshape(start, ()))


@converter("EyeLike")
def eye_like(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    rows, columns = x.type.static_shape
    dtype = (
        dtype_of(node.integer("dtype"), "the result of this EyeLike") if "dtype" in node.attrs else x.dtype
    )
    return ctx.constant(np.eye(rows, columns, node.integer("k", 0)), dtype)
