"""Move reshapes and transposes down through elementwise operators, where they meet and cancel others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tcomp.relay.attributes import flag, integer, integers
from tcomp.relay.dims import is_static
from tcomp.relay.graph import Constant, Node, Value
from tcomp.relay.op import OPS, FusionKind
from tcomp.relay.pattern import any_operands, op, operand
from tcomp.relay.rewrite import Match, Rule
from tcomp.relay.types import Array
from tcomp.transform.rules.common import broadcast_through

_COMPUTED = (FusionKind.CONTRACTION, FusionKind.REDUCTION, FusionKind.ELEMENTWISE)
_REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")


def _movement_operand(match: Match, op: str) -> Node | None:
    """The first operand of the root that is made by `op`, read once, and of the root's shape."""
    for value in match.root.inputs:
        node = match.editor.producer(value)
        if node is None or node.op != op or value.shape != match.type.shape:
            continue
        if match.editor.use_count(value) == 1:
            return node
    return None


def _rebuild(match: Match, operands: list[Value | None]) -> Value | None:
    found = [v for v in operands if v is not None]
    if len(found) != len(operands):
        return None
    return match.op(match.root.op, *found, **match.root.attrs)


def _sink_reshape(match: Match) -> Value | None:
    """f(reshape(x), y) -> reshape(f(x, reshape(y))), behind what a kernel computes, so that f can join it."""
    view = _movement_operand(match, "reshape")
    if view is None or not match.type.is_static:
        return None
    x = view.inputs[0]
    if not _can_sink(match, x) or any(_would_return(match, v, x) for v in match.root.inputs):
        return None
    result = _rebuild(match, [_viewed(match, v, x.type.static_shape) for v in match.root.inputs])
    return None if result is None else match.op("reshape", result, shape=match.type.shape)


def _can_sink(match: Match, x: Value) -> bool:
    """Whether a reshape of `x` is one that moves down: `x` is computed, for that reshape alone."""
    producer = match.editor.producer(x)
    return producer is not None and OPS[producer.op].kind in _COMPUTED and match.editor.use_count(x) == 1


def _would_return(match: Match, value: Value, x: Value) -> bool:
    """Whether `value`, viewed as `x` is, gets a reshape that would sink in turn, and so without end."""
    node = match.editor.producer(value)
    while node is not None and node.op == "reshape":
        value = node.inputs[0]
        node = match.editor.producer(value)
    return value.shape != x.shape and value.type.size == x.type.size and _can_sink(match, value)


def _viewed(match: Match, value: Value, shape: tuple[int, ...]) -> Value | None:
    if value.type.size == 1 and isinstance(value, Constant):
        return Constant.of(value.data.reshape(()), value.name)
    target = broadcast_through(value.shape, match.type.shape, shape)
    if target is None or not is_static(target):
        return None
    if isinstance(value, Constant):
        return Constant.of(value.data.reshape(value.type.with_shape(target).static_shape), value.name)
    return match.op("reshape", value, shape=target)


def _sink_reshape_through_rows(match: Match) -> Value | None:
    """Norms and softmax over trailing axes that the reshape leaves alone."""
    root = match.root
    view = match.editor.producer(root.inputs[0])
    if view is None or view.op != "reshape" or match.editor.use_count(root.inputs[0]) != 1:
        return None
    x, axis = view.inputs[0], integer(root.attrs, "axis")
    trailing = match.type.shape[axis:]
    own = x.type.rank - len(trailing)
    if own < 1 or x.shape[own:] != trailing or len(root.outputs) != 1:
        return None
    if root.op in ("softmax", "log_softmax") and len(trailing) != 1:
        return None
    result = match.op(root.op, x, *root.inputs[1:], **{**root.attrs, "axis": own})
    return match.op("reshape", result, shape=match.type.shape)


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(a) for a in np.argsort(axes))


def _sink_transpose(match: Match) -> Value | None:
    """f(transpose(x), c) -> transpose(f(x, c')): constants move at compile time, other transposes cancel."""
    moved = _movement_operand(match, "transpose")
    if moved is None:
        return None
    axes = integers(moved.attrs, "axes")
    result = _rebuild(match, [_untransposed(match, v, axes) for v in match.root.inputs])
    return None if result is None else match.op("transpose", result, axes=axes)


def _untransposed(match: Match, value: Value, axes: tuple[int, ...]) -> Value | None:
    """What gives `value` when transposed by `axes`; None when that costs a transpose."""
    if isinstance(value, Constant):
        if value.data.size == 1:
            return Constant.of(value.data.reshape(()), value.name)
        data: Array = value.data.reshape((1,) * (len(axes) - value.data.ndim) + value.data.shape)
        moved: Array = np.transpose(data, _inverse(axes))
        return Constant.of(moved, value.name)
    node = match.editor.producer(value)
    if node is not None and node.op == "transpose" and integers(node.attrs, "axes") == axes:
        return node.inputs[0]
    shape = (1,) * (len(axes) - value.type.rank) + value.shape
    kept = [a for a in axes if shape[a] != 1]
    if kept == sorted(kept):
        return match.op("reshape", value, shape=tuple(shape[a] for a in _inverse(axes)))
    return None


def _sink_transpose_along(attribute: str) -> Callable[[Match], Value | None]:
    """Through an operator on one axis, or several, whose operands are all transposed alike."""

    def build(match: Match) -> Value | None:
        nodes = [match.editor.producer(v) for v in match.root.inputs]
        first = nodes[0]
        if first is None or first.op != "transpose" or match.editor.use_count(first.output) != 1:
            return None
        axes = integers(first.attrs, "axes")
        sources = [_untransposed(match, v, axes) for v in match.root.inputs]
        attrs = dict(match.root.attrs)
        if not flag({"keepdims": True, **attrs}, "keepdims"):
            return None
        if attribute == "axes":
            attrs["axes"] = tuple(sorted(axes[a] for a in integers(attrs, "axes")))
        else:
            attrs["axis"] = axes[integer(attrs, "axis")]
        found = [v for v in sources if v is not None]
        if len(found) != len(sources):
            return None
        return match.op("transpose", match.op(match.root.op, *found, **attrs), axes=axes)

    return build


def sink_reshape_rules() -> tuple[Rule, ...]:
    """Reshapes through elementwise operators and row-wise ones."""
    elementwise = tuple(name for name, declared in OPS.items() if declared.kind is FusionKind.ELEMENTWISE)
    rows = ("layer_norm", "rms_norm", "softmax", "log_softmax")
    return (
        Rule("sink-reshape", any_operands(elementwise), _sink_reshape),
        Rule("sink-reshape-rows", any_operands(rows), _sink_reshape_through_rows),
    )


def sink_transpose_rules() -> tuple[Rule, ...]:
    """Transposes through elementwise operators, reductions, concatenation and softmax."""
    elementwise = tuple(name for name, declared in OPS.items() if declared.kind is FusionKind.ELEMENTWISE)
    return (
        Rule("sink-transpose", any_operands(elementwise), _sink_transpose),
        Rule("sink-transpose-reduction", op(_REDUCTIONS, operand()), _sink_transpose_along("axes")),
        Rule(
            "sink-transpose-axis",
            any_operands(("concat", "softmax", "log_softmax")),
            _sink_transpose_along("axis"),
        ),
    )
