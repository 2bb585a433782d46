"""One form for contractions, so that schedules see few kinds: matrices, and two spatial axes."""

from __future__ import annotations

from math import prod

from tcomp.relay.attributes import flag, integers
from tcomp.relay.graph import Constant, Value
from tcomp.relay.layouts import PLAIN
from tcomp.relay.pattern import constant, op, operand
from tcomp.relay.rewrite import Match, Rule

_X, _Y = operand("x"), operand("y")


def _swaps_last(axes: tuple[int, ...]) -> bool:
    rank = len(axes)
    return rank >= 2 and axes == (*range(rank - 2), rank - 1, rank - 2)


def _absorb_transpose(match: Match) -> Value | None:
    """A transpose of the last two axes of an operand becomes the matmul's own."""
    root = match.root
    attrs, operands = dict(root.attrs), list(root.inputs)
    for i, name in enumerate(("transpose_a", "transpose_b")):
        node = match.editor.producer(operands[i])
        if node is not None and node.op == "transpose" and _swaps_last(integers(node.attrs, "axes")):
            operands[i] = node.inputs[0]
            attrs[name] = not flag(attrs, name)
    return match.op("matmul", *operands, **attrs) if operands != list(root.inputs) else None


def _flatten_rows(match: Match) -> Value | None:
    """[..., M, K] x [K, N] is one product of [prod(...) M, K] rows."""
    x, y, attrs = match["x"], match["y"], match.root.attrs
    if y.type.rank != 2 or x.type.rank == 2 or flag(attrs, "transpose_a") or not x.type.is_static:
        return None
    *rows, depth = x.type.static_shape
    flat = match.op("reshape", x, shape=(prod(rows), depth))
    product = match.op("matmul", flat, y, **attrs)
    return match.op("reshape", product, shape=match.type.shape)


def _drop_unit_batch(match: Match) -> Value | None:
    """Batch axes that are all 1 are views."""
    x, y = match["x"], match["y"]
    if max(x.type.rank, y.type.rank) < 3 or min(x.type.rank, y.type.rank) < 2:
        return None
    if any(d != 1 for d in (*x.shape[:-2], *y.shape[:-2])):
        return None
    flat = [match.op("reshape", v, shape=v.shape[-2:]) for v in (x, y)]
    return match.op("reshape", match.op("matmul", *flat, **match.root.attrs), shape=match.type.shape)


def _with_unit_height(value: Value, match: Match) -> Value:
    """[N, C, L] as [N, C, 1, L]."""
    shape = (*value.shape[:-1], 1, value.shape[-1])
    if isinstance(value, Constant):
        return match.constant(value.data.reshape(value.type.with_shape(shape).static_shape), value.dtype)
    return match.op("reshape", value, shape=shape)


def _to_two_axes(match: Match) -> Value | None:
    """One spatial axis becomes two, the first of extent 1."""
    root = match.root
    attrs = dict(root.attrs)
    if attrs.get("data_layout", PLAIN) != PLAIN or attrs.get("out_layout", PLAIN) != PLAIN:
        return None
    for name in ("strides", "dilation", "kernel"):
        if name in attrs:
            attrs[name] = (1, *integers(attrs, name))
    if "output_padding" in attrs:
        attrs["output_padding"] = (0, *integers(attrs, "output_padding"))
    begin, end = integers(attrs, "padding", 2)
    attrs["padding"] = (0, begin, 0, end)
    inputs = [_with_unit_height(v, match) for v in root.inputs]
    result = match.op(root.op.replace("1d", "2d"), *inputs, **attrs)
    return match.op("reshape", result, shape=match.type.shape)


CONTRACTIONS = (
    Rule("matmul-transpose", op("matmul", _X, _Y), _absorb_transpose),
    Rule("matmul-rows", op("matmul", _X, _Y), _flatten_rows),
    Rule("matmul-unit-batch", op("matmul", _X, _Y), _drop_unit_batch),
    Rule("convolution-1d", op(("conv1d", "conv1d_transpose"), _X, constant("w")), _to_two_axes),
    Rule("pool-1d", op(("max_pool1d", "avg_pool1d"), _X), _to_two_axes),
)
