"""Attention spelled out: softmax(q k^T * scale + mask) v; what its masks hide.

A choice between scores and a number becomes a mask of truth values, whose hidden keys have that number as
their score. So does a mask made by a choice between 0 and a number that takes in all it is added to, if a
part of the choice is constant. What exporters put behind the softmax, zeros for weights that are no numbers,
becomes the attribute `zero_nan`.

A constant mask that hides all keys behind a diagonal becomes the attribute `causal`, if each query sees a
key: hidden ones then have weights of exactly zero, provided that the score of none exceeds all that the query
sees by what `HIDDEN` takes off. Masks of less than that are numbers like others, and so are masks of which a
row hides all keys.
"""

from __future__ import annotations

from math import inf

import numpy as np

from tcomp.relay.attributes import flag, integer, integers, number
from tcomp.relay.graph import Attr, Constant, Node, Value
from tcomp.relay.pattern import Pattern, constant, either, op, operand
from tcomp.relay.rewrite import Match, Rule
from tcomp.relay.types import FLOATS, Array
from tcomp.transform.rules.common import scalar_of

HIDDEN = -1e4
"""What a mask adds at most to scores that it hides. Exponentials of float32 are zero from -104 on, so scores
must not exceed those beside them by 9896; models' differ by hundreds at most."""
ABSORBS = -1e30
"""What a number of float32 is at most that is the same when a score is added to it, if that is below 1e22."""
_PRODUCT = op("matmul", operand("q"), operand("k"), name="product", uses=1)


def _scaled(product: Pattern) -> Pattern:
    return either(
        op("mul", product, constant("scale"), uses=1),
        op("div", product, constant("divisor"), uses=1),
        product,
    )


def _weights(scores: Pattern) -> Pattern:
    """Of scores; as zeros where they are no numbers, in graphs that say so."""
    is_nan = op("is_nan", op("softmax", scores, name="softmax", uses=2), uses=1)
    guarded = op("where", is_nan, constant(value=0), operand("softmax"), name="guarded", uses=1)
    return either(op("softmax", scores, name="softmax", uses=1), guarded)


def _choice(scores: Pattern) -> Pattern:
    return either(
        op("where", operand("shown"), scores, constant("low"), uses=1),
        op("where", operand("hidden"), constant("low"), scores, uses=1),
    )


def _attention(match: Match) -> Value | None:
    product, softmax = match.node("product"), match.node("softmax")
    if flag(match.root.attrs, "transpose_a") or flag(match.root.attrs, "transpose_b"):
        return None
    if flag(product.attrs, "transpose_a") or integer(softmax.attrs, "axis") != softmax.output.type.rank - 1:
        return None
    if match.type.dtype not in FLOATS or min(match[n].type.rank for n in "qkv") < 3:
        return None
    scale = _scale(match)
    weights = match["guarded" if "guarded" in match else "softmax"]
    if scale is None or not match["product"].type == match["softmax"].type == weights.type:
        return None
    query, query_scale = _unscaled(match, match["q"])
    key, key_scale = _unscaled(match, match["k"])
    key = key if flag(product.attrs, "transpose_b") else _swap_last(match, key)
    masks = _masks(match)
    if masks is None:
        return None
    attrs: dict[str, Attr] = {"scale": scale * query_scale * key_scale, "zero_nan": "guarded" in match}
    if masks and masks[0].dtype == "bool":
        attrs["hidden"] = scalar_of(match["low"])
    return match.op("attention", query, key, match["v"], *masks, **attrs)


def _masks(match: Match) -> list[Value] | None:
    """The mask that does what is added to scores, and what is chosen in their place, if there is such a mask.

    It is one of truth values if nothing is added.
    """
    biases = [match[name] for name in ("bias", "mask") if name in match]
    if "low" in match:
        if scalar_of(match["low"]) is None:
            return None
        if not biases:
            return [_shown(match)]
        if not _absorbs(match["low"]):
            return None
        zero = match.constant(np.zeros((), match.data("low").dtype))
        inside, outside = (biases[0], biases[1:]) if "bias" in match else (zero, biases)
        biases = [match.op("where", _shown(match), inside, match["low"]), *outside]
    return biases if len(biases) < 2 else [match.op("add", *biases)]


def _shown(match: Match) -> Value:
    if "shown" in match:
        return match["shown"]
    hidden = match["hidden"]
    node = match.editor.producer(hidden)
    if node is not None and node.op == "broadcast_to":
        hidden = node.inputs[0]
    return match.op("logical_not", hidden)


def _absorbs(low: Value) -> bool:
    """Whether a sum with `low` is `low`."""
    number = scalar_of(low)
    return number is not None and (number == -inf or (number <= ABSORBS and low.dtype == "float32"))


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


def _chosen_mask(match: Match) -> Value | None:
    """A mask that is 0 or a number as one of truth values, where these have a constant part: that may be
    causal. Others are added as well as chosen."""
    shown = _shown(match)
    node = match.editor.producer(shown)
    if node is not None and node.op == "broadcast_to":
        node = match.editor.producer(node.inputs[0])
    part = node.inputs[0] if node is not None and node.op == "logical_and" else None
    if not isinstance(part, Constant) or part.data.all() or not _absorbs(match["low"]):
        return None
    operands, attrs = match.root.inputs[:3], match.root.attrs
    return match.op("attention", *operands, shown, **{**attrs, "hidden": scalar_of(match["low"])})


def _wide_mask(match: Match) -> Value | None:
    """A mask without the axes along which it is the same."""
    return match.op("attention", *match.root.inputs[:3], match["mask"], **match.root.attrs)


def _both_masks(match: Match) -> Value | None:
    """A mask of truth values that is a constant and another one: all is true, or a diagonal."""
    if match.data("first").all():
        return _wide_mask(match)
    query, key = (v.type for v in match.root.inputs[:2])
    attrs = match.root.attrs
    if integer(attrs, "causal") or number(attrs, "hidden") != -inf or not match.type.is_static:
        return None
    rows, keys = query.static_shape[-2], key.static_shape[-2]
    causal = causal_limit(np.where(match.data("first"), 0, -inf), rows, keys)
    if causal is None or (match.data("first") != (np.tri(rows, keys, causal - 1) > 0)).any():
        return None
    return match.op("attention", *match.root.inputs[:3], match["mask"], **{**attrs, "causal": causal})


def _causal(match: Match) -> Value | None:
    """The mask of `match`, a constant, as the attribute; what else it adds stays."""
    query, key, value, mask = match.root.inputs
    if integer(match.root.attrs, "causal") or not match.type.is_static or mask.dtype == "bool":
        return None
    rows, keys = query.type.static_shape[-2], key.type.static_shape[-2]
    causal = causal_limit(match.data("mask"), rows, keys)
    if causal is None:
        return None
    hidden = np.tri(rows, keys, causal - 1) == 0
    rest = np.where(hidden, 0, match.data("mask"))
    masks = [mask] if rest.any() else []
    return match.op("attention", query, key, value, *masks, **{**match.root.attrs, "causal": causal})


def causal_limit(mask: Array, rows: int, keys: int) -> int | None:
    """How many keys the first query sees at most, where each after it sees one more, by a mask.

    None if that hides nothing, or if a query sees no key.
    """
    if mask.shape[-2:] != (rows, keys):
        return None
    seen = ~(mask.astype(np.float32) <= HIDDEN)
    if not seen.any(axis=-1).all():
        return None
    last = keys - 1 - np.argmax(seen[..., ::-1], axis=-1)
    causal = int((last - np.arange(rows)).max()) + 1
    return causal if causal < keys else None


def _added(match: Match) -> Value | None:
    """A choice between scores and a low number, by constants, as a mask that is added."""
    where, softmax = match.node("where"), match.root
    if integer(softmax.attrs, "axis") != match.type.rank - 1 or not match.type.is_static:
        return None
    choices = where.inputs[1:]
    scores = next(v for v in choices if not isinstance(v, Constant))
    if scores.type != match.type:
        return None
    low = match.data("low")
    zero = np.zeros((), low.dtype)
    first, second = (zero, low) if choices[0] is scores else (low, zero)
    mask = np.where(match.data("shown"), first, second)
    if causal_limit(mask, *match.type.static_shape[-2:]) is None:
        return None
    masked = match.op("add", scores, match.constant(mask))
    if "mask" in match:
        masked = match.op("add", masked, match["mask"])
    return match.op("softmax", masked, **softmax.attrs)


def _two_masks(match: Match) -> Value | None:
    """A causal mask beside another one."""
    result = _attention(match)
    attention = None if result is None else match.editor.producer(result)
    if attention is None or not match.type.is_static:
        return None
    query, key, value, mask = attention.inputs
    rows, keys = query.type.static_shape[-2], key.type.static_shape[-2]
    causal = causal_limit(match.data("causal"), rows, keys)
    if causal is None or np.where(np.tri(rows, keys, causal - 1) == 0, 0, match.data("causal")).any():
        return None
    return match.op("attention", query, key, value, mask, **{**attention.attrs, "causal": causal})


_SCORES = _scaled(_PRODUCT)
_BIASED = op("add", _SCORES, operand("bias"), uses=1)
_CHOSEN = _choice(either(_SCORES, _BIASED))
_MASKED = op("add", either(_BIASED, _CHOSEN), operand("mask"), uses=1)
_TWICE_MASKED = either(
    op("add", op("add", _scaled(_PRODUCT), constant("causal"), uses=1), operand("mask"), uses=1),
    op("add", op("add", _scaled(_PRODUCT), operand("mask"), uses=1), constant("causal"), uses=1),
)
_CONSTANT_CHOICE = either(
    op("where", constant("shown"), _SCORES, constant("low"), uses=1, name="where"),
    op("where", constant("shown"), constant("low"), _SCORES, uses=1, name="where"),
)
_MASKED_CHOICE = op("add", _CONSTANT_CHOICE, operand("mask"), uses=1)
_ZERO = constant(value=0)


def _with_mask(mask: Pattern) -> Pattern:
    return op("attention", operand(), operand(), operand(), mask)


ATTENTION = (
    Rule("attention", op("matmul", _weights(either(_SCORES, _BIASED, _CHOSEN)), operand("v")), _attention),
    Rule("attention-two-masks", op("matmul", _weights(_TWICE_MASKED), operand("v")), _two_masks),
    Rule("attention-masks", op("matmul", _weights(_MASKED), operand("v")), _attention),
    Rule("attention-causal", _with_mask(constant("mask")), _causal),
    Rule("attention-choice", op("softmax", either(_CONSTANT_CHOICE, _MASKED_CHOICE)), _added),
    Rule(
        "attention-chosen-mask",
        _with_mask(op("where", operand("shown"), _ZERO, constant("low"))),
        _chosen_mask,
    ),
    Rule(
        "attention-chosen-mask",
        _with_mask(op("where", operand("hidden"), constant("low"), _ZERO)),
        _chosen_mask,
    ),
    Rule("attention-wide-mask", _with_mask(op("broadcast_to", operand("mask"))), _wide_mask),
    Rule(
        "attention-both-masks", _with_mask(op("logical_and", constant("first"), operand("mask"))), _both_masks
    ),
)
