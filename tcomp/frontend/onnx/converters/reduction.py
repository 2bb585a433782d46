"""Reductions along axes, positions of extremes, running sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tcomp.errors import ModelError
from tcomp.frontend.onnx.axes import normalise_axes, normalise_axis
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.relay.graph import Value
from tcomp.relay.types import FLOATS

Reduction = Callable[[Context, Value, "tuple[int, ...]", bool], Value]


def _plain(op: str) -> Reduction:
    return lambda ctx, x, axes, keepdims: ctx.op(op, x, axes=axes, keepdims=keepdims) if axes else x


_sum = _plain("reduce_sum")


def _extreme(op: str) -> Reduction:
    """Maximum or minimum: of booleans through uint8; of nothing, the least or greatest number."""

    def reduce(ctx: Context, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
        if not axes:
            return x
        if x.dtype == "bool":
            return ctx.cast(reduce(ctx, ctx.cast(x, "uint8"), axes, keepdims), "bool")
        if all(x.shape[a] != 0 for a in axes):
            return ctx.op(op, x, axes=axes, keepdims=keepdims)
        shape = [1 if a in axes else d for a, d in enumerate(x.shape) if keepdims or a not in axes]
        return ctx.broadcast_to(_limit(ctx, x.dtype, lowest=op == "reduce_max"), shape)

    return reduce


def _limit(ctx: Context, dtype: str, lowest: bool) -> Value:
    if dtype in FLOATS:
        return ctx.constant(-np.inf if lowest else np.inf, dtype)
    limits = np.iinfo(dtype)
    return ctx.constant(limits.min if lowest else limits.max, dtype)


def _sum_of_magnitudes(ctx: Context, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    return _sum(ctx, ctx.op("abs", x), axes, keepdims)


def _sum_of_squares(ctx: Context, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    return _sum(ctx, ctx.op("mul", x, x), axes, keepdims)


def _euclidean(ctx: Context, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    return _in_float(ctx, _sum_of_squares(ctx, x, axes, keepdims), "sqrt")


def _log_sum(ctx: Context, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    return _in_float(ctx, _sum(ctx, x, axes, keepdims), "log")


def _log_sum_exp(ctx: Context, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    """max + log(sum(exp(x - max))); an infinite maximum is not subtracted (inf - inf is no number)."""
    if not axes:
        return x
    dtype = x.dtype
    x = x if dtype.startswith(("float", "bfloat")) else ctx.cast(x, "float64")
    largest = _extreme("reduce_max")(ctx, x, axes, True)
    shift = ctx.op("where", ctx.op("is_inf", largest), ctx.constant(0, x.dtype), largest)
    total = ctx.op("reduce_sum", ctx.op("exp", ctx.op("sub", x, shift)), axes=axes)
    result = ctx.op("add", ctx.op("log", total), shift)
    if not keepdims:
        result = ctx.reshape(result, [d for i, d in enumerate(result.shape) if i not in axes])
    return ctx.cast(result, dtype)


def _in_float(ctx: Context, x: Value, op: str) -> Value:
    """Apply a real function to any number type; integers go through float64."""
    if x.dtype in FLOATS:
        return ctx.op(op, x)
    return ctx.cast(ctx.op(op, ctx.cast(x, "float64")), x.dtype)


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _sum,
    "ReduceMean": _plain("reduce_mean"),
    "ReduceMax": _extreme("reduce_max"),
    "ReduceMin": _extreme("reduce_min"),
    "ReduceProd": _plain("reduce_prod"),
    "ReduceL1": _sum_of_magnitudes,
    "ReduceL2": _euclidean,
    "ReduceSumSquare": _sum_of_squares,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


@converter(*_REDUCTIONS)
def reduce_by_attribute(ctx: Context, node: OnnxNode) -> Value:
    return _reduce(ctx, node, node.optional_integers("axes"))


@converter("ReduceSum", since=13)
@converter(*(op for op in _REDUCTIONS if op != "ReduceSum"), since=18)
def reduce_by_input(ctx: Context, node: OnnxNode) -> Value:
    operand = node.optional(1)
    axes = None if operand is None else ctx.integers(operand, "axes")
    if not axes and node.integer("noop_with_empty_axes", 0):
        return _REDUCTIONS[node.op_type](ctx, node.input(0), (), True)
    return _reduce(ctx, node, axes)


def _reduce(ctx: Context, node: OnnxNode, axes: tuple[int, ...] | None) -> Value:
    """No axes mean all of them; a scalar has none to reduce."""
    x = node.input(0)
    chosen = normalise_axes(axes, x) if axes else tuple(range(x.type.rank))
    return _REDUCTIONS[node.op_type](ctx, x, tuple(sorted(chosen)), bool(node.integer("keepdims", 1)))


@converter("ArgMax", "ArgMin")
def arg_extreme(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    return ctx.op(
        node.op_type.lower(),
        x,
        axis=normalise_axis(node.integer("axis", 0), x),
        keepdims=bool(node.integer("keepdims", 1)),
        select_last=bool(node.integer("select_last_index", 0)),
    )


@converter("CumSum")
def cumulative_sum(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    (axis,) = ctx.integers(node.input(1), "axis")
    return ctx.op(
        "cumsum",
        x,
        axis=normalise_axis(axis, x),
        exclusive=bool(node.integer("exclusive", 0)),
        reverse=bool(node.integer("reverse", 0)),
    )


@converter("TopK")
def top_k_by_attribute(ctx: Context, node: OnnxNode) -> tuple[Value, ...]:
    return _top_k(ctx, node, node.integer("k"))


@converter("TopK", since=10)
def top_k(ctx: Context, node: OnnxNode) -> tuple[Value, ...]:
    (k,) = ctx.integers(node.input(1), "k")
    return _top_k(ctx, node, k)


def _top_k(ctx: Context, node: OnnxNode, k: int) -> tuple[Value, ...]:
    x = node.input(0)
    axis = normalise_axis(node.integer("axis", -1), x)
    size = x.shape[axis]
    if isinstance(size, int) and k > size:
        raise ModelError(f"k = {k} is more than the {size} elements of axis {axis} of {x.type}")
    largest, in_order = bool(node.integer("largest", 1)), bool(node.integer("sorted", 1))
    return ctx.ops("topk", x, axis=axis, k=k, largest=largest, sorted=in_order)
