"""Attention spelled out: softmax(q k^T * scale + mask) v."""

from __future__ import annotations

from tcomp.relay.attributes import flag, integer, integers
from tcomp.relay.graph import Node, Value
from tcomp.relay.pattern import Pattern, constant, either, op, operand
from tcomp.relay.rewrite import Match, Rule
from tcomp.relay.types import FLOATS
from tcomp.transform.rules.common import scalar_of

_PRODUCT = op("matmul", operand("q"), operand("k"), name="product", uses=1)


def _scaled(product: Pattern) -> Pattern:
    return either(
        op("mul", product, constant("scale"), uses=1),
        op("div", product, constant("divisor"), uses=1),
        product,
    )


def _softmax(scores: Pattern) -> Pattern:
    return op("softmax", scores, name="softmax", uses=1)


def _attention(match: Match) -> Value | None:
    product, softmax = match.node("product"), match.node("softmax")
    if flag(match.root.attrs, "transpose_a") or flag(match.root.attrs, "transpose_b"):
        return None
    if flag(product.attrs, "transpose_a") or integer(softmax.attrs, "axis") != softmax.output.type.rank - 1:
        return None
    if match.type.dtype not in FLOATS or min(match[n].type.rank for n in "qkv") < 3:
        return None
    scale = _scale(match)
    if scale is None or match["product"].type != match["softmax"].type:
        return None
    query, query_scale = _unscaled(match, match["q"])
    key, key_scale = _unscaled(match, match["k"])
    key = key if flag(product.attrs, "transpose_b") else _swap_last(match, key)
    mask = [match["mask"]] if "mask" in match else []
    return match.op("attention", query, key, match["v"], *mask, scale=scale * query_scale * key_scale)


def _scale(match: Match) -> float | None:
    if "scale" in match:
        return scalar_of(match["scale"])
    if "divisor" in match:
        divisor = scalar_of(match["divisor"])
        return 1 / divisor if divisor else None
    return 1.0


def _unscaled(match: Match, value: Value) -> tuple[Value, float]:
    """What `value` was before a multiplication by one number, and the number; movement may lie between."""
    node = match.editor.producer(value)
    if node is None or match.editor.use_count(value) > 1:
        return value, 1.0
    if node.op in ("transpose", "reshape"):
        inner, scale = _unscaled(match, node.inputs[0])
        return (value, 1.0) if scale == 1.0 else (match.op(node.op, inner, **node.attrs), scale)
    if node.op not in ("mul", "div"):
        return value, 1.0
    factor = scalar_of(node.inputs[1])
    if not factor or node.inputs[0].type != value.type:
        return value, 1.0
    return node.inputs[0], factor if node.op == "mul" else 1 / factor


def _swap_last(match: Match, value: Value) -> Value:
    """`value` with its last two axes swapped; a transpose that made it so is undone."""
    rank = value.type.rank
    swap = (*range(rank - 2), rank - 1, rank - 2)
    node: Node | None = match.editor.producer(value)
    if node is not None and node.op == "transpose":
        inner = integers(node.attrs, "axes")
        return match.op("transpose", node.inputs[0], axes=tuple(inner[a] for a in swap))
    return match.op("transpose", value, axes=swap)


_MASKED = op("add", _scaled(_PRODUCT), operand("mask"), uses=1)
ATTENTION = (
    Rule("attention", op("matmul", _softmax(_scaled(_PRODUCT)), operand("v")), _attention),
    Rule("attention-mask", op("matmul", _softmax(_MASKED), operand("v")), _attention),
)
