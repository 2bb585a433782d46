"""Moving elements around: transpose, concat, split, slice, pad, tile, depth and space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.axes import normalise_axes, normalise_axis, static_dim
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Constant, Value


@converter("Transpose")
def transpose(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    axes = node.integers("perm", tuple(reversed(range(x.type.rank))))
    if sorted(axes) != list(range(x.type.rank)):
        raise ModelError(f"perm {list(axes)} is no permutation of the axes of {x.type}")
    return ctx.transpose(x, axes)


@converter("Concat")
def concat(ctx: Context, node: OnnxNode) -> Value:
    values = node.all_inputs()
    return ctx.op("concat", *values, axis=normalise_axis(node.integer("axis", 1), values[0]))


@converter("Split")
def split_by_attribute(ctx: Context, node: OnnxNode) -> list[Value]:
    return _split(ctx, node, node.optional_integers("split"))


@converter("Split", since=13)
def split_by_input(ctx: Context, node: OnnxNode) -> list[Value]:
    operand = node.optional(1)
    return _split(ctx, node, None if operand is None else ctx.integers(operand, "split"))


def _split(ctx: Context, node: OnnxNode, sizes: tuple[int, ...] | None) -> list[Value]:
    """Consecutive slices; without sizes, equal ones with the last possibly smaller."""
    x = node.input(0)
    axis = normalise_axis(node.integer("axis", 0), x)
    if sizes is None:
        parts = len(node.output_names)
        if node.integer("num_outputs", parts) != parts:
            raise ModelError(f"num_outputs is {node.integer('num_outputs')}, but it has {parts} outputs")
        total = static_dim(x, axis, "the size it splits")
        size = -(-total // parts)
        sizes = tuple(max(min(size, total - i * size), 0) for i in range(parts))
    known = x.shape[axis]
    if isinstance(known, int) and sum(sizes) != known:
        raise ModelError(
            f"split {list(sizes)} adds up to {sum(sizes)}, but axis {axis} of {x.type} is {known}"
        )
    ends = np.cumsum(sizes).tolist()
    return [cut(ctx, x, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def cut(ctx: Context, x: Value, axis: int, begin: Dim, end: Dim) -> Value:
    """x[..., begin:end, ...] along one axis."""
    begins: list[Dim] = [0] * x.type.rank
    ends: list[Dim] = list(x.shape)
    begins[axis], ends[axis] = begin, end
    return ctx.op("slice", x, begin=tuple(begins), end=tuple(ends), strides=(1,) * x.type.rank)


@converter("Slice")
def slice_by_attributes(ctx: Context, node: OnnxNode) -> Value:
    starts, ends = node.integers("starts"), node.integers("ends")
    axes = node.integers("axes", tuple(range(len(starts))))
    return _slice(ctx, node.input(0), starts, ends, axes, (1,) * len(starts))


@converter("Slice", since=10)
def slice_by_inputs(ctx: Context, node: OnnxNode) -> Value:
    starts, ends = ctx.dims(node.input(1), "starts"), ctx.dims(node.input(2), "ends")
    axes, steps = node.optional(3), node.optional(4)
    return _slice(
        ctx,
        node.input(0),
        starts,
        ends,
        tuple(range(len(starts))) if axes is None else ctx.integers(axes, "axes"),
        (1,) * len(starts) if steps is None else ctx.integers(steps, "steps"),
    )


def _slice(
    ctx: Context,
    x: Value,
    starts: Sequence[Dim],
    ends: Sequence[Dim],
    axes: Sequence[int],
    steps: Sequence[int],
) -> Value:
    begins: list[Dim] = [0] * x.type.rank
    limits: list[Dim] = list(x.shape)
    strides = [1] * x.type.rank
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ModelError(
            f"starts, ends, axes, steps have {len(starts)}, {len(ends)}, {len(axes)}, {len(steps)} elements"
        )
    for start, end, axis, step in zip(starts, ends, normalise_axes(axes, x), steps, strict=True):
        if step == 0:
            raise ModelError("a step is 0; it must be positive or negative")
        size, strides[axis] = x.shape[axis], step
        if step > 0:
            begins[axis], limits[axis] = _bound(start, size, 0, 0), _bound(end, size, 0, 0)
            begin, limit = begins[axis], limits[axis]
            if isinstance(begin, int) and isinstance(limit, int):
                limits[axis] = max(begin, limit)
        else:
            begins[axis], limits[axis] = _bound(start, size, 0, -1), _bound(end, size, -1, -1)
    if tuple(limits) == x.shape and all(b == 0 for b in begins) and all(s == 1 for s in strides):
        return x
    return ctx.op("slice", x, begin=tuple(begins), end=tuple(limits), strides=tuple(strides))


INFINITE = 10**9  # exporters write this, or the largest int32 or int64, for "to the end"


def _bound(position: Dim, size: Dim, lowest: int, offset: int) -> Dim:
    """`position` counted from the front and clamped to lowest .. size + offset.

    With a symbolic size, positions are taken to lie inside, but for the exporters' infinity.
    """
    if isinstance(position, int) and isinstance(size, int):
        position = position + size if position < 0 else position
        return max(min(position, size + offset), lowest)
    if isinstance(position, int):
        if position >= INFINITE:
            return size + offset
        if position <= -INFINITE:
            return lowest
        return position + size if position < 0 else position
    return position


@converter("Pad")
def pad_by_attributes(ctx: Context, node: OnnxNode) -> Value:
    return _pad(ctx, node, node.integers("pads"), node.real("value", 0.0))


@converter("Pad", since=11)
def pad_by_inputs(ctx: Context, node: OnnxNode) -> Value:
    x, pads = node.input(0), ctx.integers(node.input(1), "pads")
    operand, axes = node.optional(2), node.optional(3)
    if axes is not None:
        pads = _spread(x, pads, normalise_axes(ctx.integers(axes, "axes"), x))
    value = 0.0
    if operand is not None and operand.type.size != 0:
        if not isinstance(operand, Constant):
            raise UnsupportedError("its constant_value must be known at compile time")
        value = operand.data.reshape(-1)[0].item()
    return _pad(ctx, node, pads, value)


def _spread(x: Value, pads: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Padding of some axes as padding of all of them."""
    begins, ends = [0] * x.type.rank, [0] * x.type.rank
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[i], pads[len(axes) + i]
    return (*begins, *ends)


def _pad(ctx: Context, node: OnnxNode, pads: tuple[int, ...], value: float) -> Value:
    x = node.input(0)
    if len(pads) != 2 * x.type.rank:
        raise ModelError(f"pads {list(pads)} do not fit {x.type}; two entries for each axis are needed")
    if not any(pads):
        return x
    return ctx.op("pad", x, padding=pads, mode=node.text("mode", "constant"), value=value)


@converter("Tile")
def tile(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op("tile", node.input(0), repeats=ctx.integers(node.input(1), "repeats"))


@converter("DepthToSpace")
def depth_to_space(ctx: Context, node: OnnxNode) -> Value:
    """[N, C, H, W] -> [N, C/b^2, H*b, W*b]."""
    x, b = node.input(0), node.integer("blocksize")
    n, c, h, w = _image(x)
    depth = c // (b * b)
    if node.text("mode", "DCR") == "DCR":
        blocks = ctx.transpose(ctx.reshape(x, (n, b, b, depth, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        blocks = ctx.transpose(ctx.reshape(x, (n, depth, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return ctx.reshape(blocks, (n, depth, h * b, w * b))


@converter("SpaceToDepth")
def space_to_depth(ctx: Context, node: OnnxNode) -> Value:
    """[N, C, H, W] -> [N, C*b^2, H/b, W/b]."""
    x, b = node.input(0), node.integer("blocksize")
    n, c, h, w = _image(x)
    blocks = ctx.reshape(x, (n, c, h // b, b, w // b, b))
    order = (0, 3, 5, 1, 2, 4) if node.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return ctx.reshape(ctx.transpose(blocks, order), (n, c * b * b, h // b, w // b))


def _image(x: Value) -> tuple[Dim, Dim, Dim, Dim]:
    if x.type.rank != 4:
        raise ModelError(f"its input {x.type} is not [N, C, H, W]")
    n, c, h, w = x.shape
    return n, c, h, w


@converter("Trilu")
def triangle(ctx: Context, node: OnnxNode) -> Value:
    operand = node.optional(1)
    k = 0 if operand is None else ctx.integers(operand, "k")[0]
    return ctx.op("trilu", node.input(0), upper=bool(node.integer("upper", 1)), k=k)
