"""Movement that moves nothing, undoes other movement, or can be done by its neighbour."""

from __future__ import annotations

from math import prod

import numpy as np

from tcomp.relay.attributes import flag, integer, integers, number
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Attrs, Value
from tcomp.relay.layouts import PLAIN
from tcomp.relay.pattern import any_operands, constant, op, operand
from tcomp.relay.rewrite import Match, Rule
from tcomp.transform.rules.common import aligned_groups

_X, _INDICES = operand("x"), constant("indices")
_REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")


def _keep_if_same_type(match: Match) -> Value | None:
    return match["x"] if match["x"].type == match.type else None


def _reshape_input(match: Match) -> Value | None:
    return match.op("reshape", match["x"], shape=match.type.shape)


def _merge_transposes(match: Match) -> Value | None:
    inner = integers(match.node("inner").attrs, "axes")
    outer = integers(match.root.attrs, "axes")
    return match.op("transpose", match["x"], axes=tuple(inner[a] for a in outer))


def moves_nothing(axes: tuple[int, ...], shape: tuple[Dim, ...]) -> bool:
    """Whether a transpose keeps the order of all axes longer than 1, and so the order of elements."""
    kept = [a for a in axes if shape[a] != 1]
    return kept == sorted(kept)


def _transpose_as_view(match: Match) -> Value | None:
    if not moves_nothing(integers(match.root.attrs, "axes"), match["x"].shape):
        return None
    return match["x"] if match["x"].type == match.type else _reshape_input(match)


def _broadcast_as_view(match: Match) -> Value | None:
    return _reshape_input(match) if match["x"].type.size == match.type.size else None


def _merge_broadcasts(match: Match) -> Value | None:
    return match.op("broadcast_to", match["x"], shape=match.type.shape)


def _tile_as_broadcast(match: Match) -> Value | None:
    repeats = match.root.attrs["repeats"]
    if not isinstance(repeats, tuple):
        return None
    if any(r != 1 and d != 1 for r, d in zip(repeats, match["x"].shape, strict=True)):
        return None
    return match.op("broadcast_to", match["x"], shape=match.type.shape)


def _static_slice(attrs: Attrs) -> list[tuple[int, int, int]] | None:
    """(begin, end, stride) of each axis; None when symbolic or backwards."""
    begin, end, strides = attrs["begin"], attrs["end"], attrs["strides"]
    if not isinstance(begin, tuple) or not isinstance(end, tuple) or not isinstance(strides, tuple):
        return None
    found = [
        (b, e, s)
        for b, e, s in zip(begin, end, strides, strict=True)
        if isinstance(b, int) and isinstance(e, int) and isinstance(s, int) and s > 0
    ]
    return found if len(found) == len(begin) else None


def _merge_slices(match: Match) -> Value | None:
    inner, outer = _static_slice(match.node("inner").attrs), _static_slice(match.root.attrs)
    if inner is None or outer is None or not match.type.is_static or 0 in match.type.shape:
        return None
    begin = tuple(b + s * c for (b, _, s), (c, _, _) in zip(inner, outer, strict=True))
    strides = tuple(s * t for (_, _, s), (_, _, t) in zip(inner, outer, strict=True))
    end = tuple(b + (n - 1) * s + 1 for b, n, s in zip(begin, match.type.static_shape, strides, strict=True))
    return match.op("slice", match["x"], begin=begin, end=end, strides=strides)


def _slice_of_concat(match: Match) -> Value | None:
    """A slice that lies within one operand of the concatenation reads that operand."""
    cut, concat = _static_slice(match.root.attrs), match.node("concat")
    axis = integer(concat.attrs, "axis")
    if cut is None:
        return None
    begin, end, _ = cut[axis]
    start = 0
    for part in concat.inputs:
        extent = part.shape[axis]
        if not isinstance(extent, int):
            return None
        if start <= begin and end <= start + extent:
            shifted = [*cut[:axis], (begin - start, end - start, cut[axis][2]), *cut[axis + 1 :]]
            return match.op(
                "slice",
                part,
                begin=tuple(b for b, _, _ in shifted),
                end=tuple(e for _, e, _ in shifted),
                strides=tuple(s for _, _, s in shifted),
            )
        start += extent
    return None


def _simplify_concat(match: Match) -> Value | None:
    """Join nested concatenations on one axis, drop empty operands, and undo a single operand."""
    axis = integer(match.root.attrs, "axis")
    parts: list[Value] = []
    for value in match.root.inputs:
        node = match.editor.producer(value)
        inner = node is not None and node.op == "concat" and match.editor.use_count(value) == 1
        if node is not None and inner and integer(node.attrs, "axis") == axis:
            parts += node.inputs
        elif value.shape[axis] != 0:
            parts.append(value)
    if not parts or (len(parts) == len(match.root.inputs) and len(parts) > 1):
        return None
    return parts[0] if len(parts) == 1 else match.op("concat", *parts, axis=axis)


def _gather_one_as_slice(match: Match) -> Value | None:
    """Gathering one index, or consecutive ones, whatever their shape, is a slice."""
    x, indices = match["x"], match.data("indices")
    axis = integer(match.root.attrs, "axis")
    extent = x.shape[axis]
    if not isinstance(extent, int) or indices.size == 0 or not x.type.is_static:
        return None
    first, steps = int(indices.reshape(-1)[0]), np.diff(indices.reshape(-1))
    first += extent if first < 0 else 0
    if np.any(steps != 1) or not 0 <= first <= extent - indices.size:
        return None
    shape = x.type.static_shape
    begin = tuple(first if a == axis else 0 for a in range(len(shape)))
    end = tuple(first + indices.size if a == axis else d for a, d in enumerate(shape))
    cut = match.op("slice", x, begin=begin, end=end, strides=(1,) * len(shape))
    return match.op("reshape", cut, shape=match.type.shape)


def _slice_of_transpose(match: Match) -> Value | None:
    """Slice first: the transpose then moves less."""
    axes, cut = integers(match.node("moved").attrs, "axes"), _static_slice(match.root.attrs)
    if cut is None:
        return None
    begin, end, strides = [0] * len(axes), [0] * len(axes), [1] * len(axes)
    for axis, (b, e, s) in zip(axes, cut, strict=True):
        begin[axis], end[axis], strides[axis] = b, e, s
    part = match.op("slice", match["x"], begin=tuple(begin), end=tuple(end), strides=tuple(strides))
    return match.op("transpose", part, axes=axes)


def _reshape_of_transpose(match: Match) -> Value | None:
    """Drop or add axes of extent 1 before the transpose: it then meets what reads it.

    reshape(transpose(x: [1, 197, 1, 6, 64], (2, 0, 3, 1, 4)), [1, 6, 197, 64])
      -> transpose(reshape(x, [1, 197, 6, 64]), (0, 2, 1, 3))
    """
    x, axes = match["x"], integers(match.node("moved").attrs, "axes")
    if not match.type.is_static or not x.type.is_static or match.type == match["moved"].type:
        return None
    source, target = x.type.static_shape, match.type.static_shape
    moved = [a for a in axes if source[a] != 1]
    places = [i for i, d in enumerate(target) if d != 1]
    if [source[a] for a in moved] != [target[i] for i in places]:
        return None
    shape, order = [1] * len(target), list(range(len(target)))
    for place, axis in zip(places, sorted(moved), strict=True):
        shape[place] = source[axis]
    for place, axis in zip(places, moved, strict=True):
        order[place] = places[sorted(moved).index(axis)]
    return match.op("transpose", match.op("reshape", x, shape=tuple(shape)), axes=tuple(order))


def _reshape_of_slice(match: Match) -> Value | None:
    """Slice after the reshape: views then stand together and the slice meets what reads it.

    reshape(slice(x: [128, 2304], columns 768 to 1536), [128, 12, 64])
      -> slice(reshape(x, [128, 36, 64]), heads 12 to 24)
    reshape(slice(x: [197, 3, 6, 64], 1 to 2 of the 3), [197, 6, 64])
      -> slice(reshape(x, [197, 18, 64]), heads 6 to 12)
    """
    x, cut = match["x"], _static_slice(match.node("slice").attrs)
    source = match["slice"].shape
    groups = aligned_groups(source, match.type.shape)
    if cut is None or groups is None or not x.type.is_static:
        return None
    full, shape, target = x.type.static_shape, [0] * match.type.rank, match.type.static_shape
    begin, end, strides = [0] * len(shape), [0] * len(shape), [1] * len(shape)
    for from_axes, to_axes in groups:
        sliced = [a for a in from_axes if full[a] != source[a]]
        leading = next((j for j in to_axes if target[j] != 1), None)
        for j in to_axes:
            shape[j], end[j] = target[j], target[j]
        if not sliced:
            continue
        longer = [a for a in from_axes if full[a] != 1]
        if sliced != longer[:1] or leading is None or cut[longer[0]][2] != 1:
            return None
        inner = prod(full[a] for a in longer[1:])
        rest = prod(target[j] for j in to_axes if j > leading)
        first, last = (edge * inner for edge in cut[longer[0]][:2])
        if first % rest or last % rest or full[longer[0]] * inner % rest:
            return None
        shape[leading] = full[longer[0]] * inner // rest
        begin[leading], end[leading] = first // rest, last // rest
    view = match.op("reshape", x, shape=tuple(shape))
    return match.op("slice", view, begin=tuple(begin), end=tuple(end), strides=tuple(strides))


def _keep_reduced_axes(match: Match) -> Value | None:
    """reduce(keepdims=False) -> reshape(reduce(keepdims=True)): the reshape is a view."""
    root = match.root
    if flag(root.attrs, "keepdims"):
        return None
    kept = match.op(root.op, match["x"], **{**root.attrs, "keepdims": True})
    return match.op("reshape", kept, shape=match.type.shape)


def _reduce_nothing(match: Match) -> Value | None:
    axes = integers(match.root.attrs, "axes")
    if any(match["x"].shape[a] != 1 for a in axes):
        return None
    return _reshape_input(match)


def _pad_into_window(match: Match) -> Value | None:
    """Zeros around the input of a convolution, or its `pad_value`, are padding of the convolution."""
    root, pad = match.root, match.node("pad")
    padding = pad.attrs["padding"]
    if (
        pad.attrs["mode"] != "constant"
        or number(pad.attrs, "value") != integer(root.attrs, "pad_value")
        or root.attrs["data_layout"] != PLAIN
    ):
        return None
    rank = match["x"].type.rank
    if not isinstance(padding, tuple) or any(not isinstance(p, int) or p < 0 for p in padding):
        return None
    widths = integers(pad.attrs, "padding")
    before, after = widths[:rank], widths[rank:]
    if any((*before[:2], *after[:2])):
        return None
    own = integers(root.attrs, "padding")
    total = tuple(a + b for a, b in zip(own, (*before[2:], *after[2:]), strict=True))
    return match.op(root.op, match["x"], match["w"], **{**root.attrs, "padding": total})


def _global_pool(match: Match) -> Value | None:
    """Pooling over everything without padding is a reduction."""
    root = match.root
    rank = match["x"].type.rank
    kernel, padding = integers(root.attrs, "kernel"), integers(root.attrs, "padding")
    if root.attrs["data_layout"] != PLAIN or kernel != match["x"].shape[2:] or any(padding):
        return None
    if any(d != 1 for d in integers(root.attrs, "dilation")) or match.type.shape[2:] != (1,) * (rank - 2):
        return None
    name = "reduce_max" if root.op.startswith("max") else "reduce_mean"
    return match.op(name, match["x"], axes=tuple(range(2, rank)), keepdims=True)


VIEWS = (
    Rule("same-reshape", op("reshape", _X), _keep_if_same_type),
    Rule("reshape-reshape", op("reshape", op("reshape", _X)), _reshape_input),
    Rule("transpose-view", op("transpose", _X), _transpose_as_view),
    Rule("transpose-transpose", op("transpose", op("transpose", _X, name="inner")), _merge_transposes),
    Rule(
        "reshape-transpose",
        op("reshape", op("transpose", _X, uses=1, name="moved")),
        _reshape_of_transpose,
    ),
    Rule("broadcast-view", op("broadcast_to", _X), _broadcast_as_view),
    Rule("broadcast-broadcast", op("broadcast_to", op("broadcast_to", _X)), _merge_broadcasts),
    Rule("tile-one", op("tile", _X), _tile_as_broadcast),
    Rule("reduce-nothing", op(_REDUCTIONS, _X), _reduce_nothing),
    Rule("keep-reduced-axes", op(_REDUCTIONS, _X), _keep_reduced_axes),
)
SLICES = (
    Rule(
        "same-slice",
        op("slice", _X),
        lambda m: _keep_if_same_type(m) if _static_slice(m.root.attrs) else None,
    ),
    Rule("slice-slice", op("slice", op("slice", _X, name="inner", uses=1)), _merge_slices),
    Rule("slice-concat", op("slice", any_operands("concat", name="concat")), _slice_of_concat),
    Rule("slice-transpose", op("slice", op("transpose", _X, name="moved")), _slice_of_transpose),
    Rule("gather-slice", op("gather", _X, _INDICES), _gather_one_as_slice),
    Rule("reshape-slice", op("reshape", op("slice", _X, uses=1, name="slice")), _reshape_of_slice),
)
PADDING = (
    Rule("zero-pad", op("pad", _X), _keep_if_same_type),
    Rule(
        "pad-convolution",
        op(("conv1d", "conv2d", "conv3d"), op("pad", _X, name="pad"), operand("w")),
        _pad_into_window,
    ),
    Rule(
        "global-pool",
        op(("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"), _X),
        _global_pool,
    ),
)
CONCATS = (Rule("concat", any_operands("concat"), _simplify_concat),)
MOVEMENT = (*VIEWS, *SLICES, *PADDING, *CONCATS)
