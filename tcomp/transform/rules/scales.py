"""Constant scales and shifts around contractions, folded into their weights."""

from __future__ import annotations

import numpy as np

from tcomp.relay.attributes import flag, integer, number
from tcomp.relay.graph import Value
from tcomp.relay.layouts import PLAIN
from tcomp.relay.pattern import constant, op, operand
from tcomp.relay.rewrite import Match, Rule
from tcomp.relay.types import FLOAT8, Array

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv1d_transpose", "conv2d_transpose", "conv3d_transpose")
_X, _W, _C = operand("x"), constant("w"), constant("c")


def _batch_norm(match: Match) -> Value | None:
    """scale (x - mean) / sqrt(var + epsilon) + bias is one multiplication and one addition per channel."""
    scale, bias, mean, variance = (match.data(n).astype(np.float64) for n in ("s", "b", "m", "v"))
    factor = scale / np.sqrt(variance + number(match.root.attrs, "epsilon"))
    shape = (1, -1) + (1,) * (match.type.rank - 2)
    scaled = match.op("mul", match["x"], match.constant(factor.reshape(shape)))
    return match.op("add", scaled, match.constant((bias - mean * factor).reshape(shape)))


def per_channel(data: Array, rank: int, axis: int, channels: int) -> Array | None:
    """A constant broadcast against rank `rank` as a vector over `axis`; None when it varies along another."""
    shape = (1,) * (rank - data.ndim) + data.shape
    if data.ndim > rank or any(d != 1 for a, d in enumerate(shape) if a != axis):
        return None
    return np.broadcast_to(data.reshape(-1), (channels,)) if shape[axis] in (1, channels) else None


def _output_axis(match: Match) -> int:
    return match.type.rank - 1 if match.node("anchor").op == "matmul" else 1


def _scaled_anchor(match: Match) -> Value | None:
    """The anchor with its weights multiplied by c along the output channels."""
    anchor, weight = match.node("anchor"), match.data("w")
    wide = weight.dtype.kind == "f" and weight.dtype.name not in FLOAT8
    if match["anchor"].type != match.type or not wide or weight.ndim < 2:
        return None
    factor = _channel_vector(match, "c")
    if factor is None:
        return None
    if anchor.op == "matmul":
        if weight.ndim != 2 or match["x"].type.rank < 2:
            return None
        shape = (-1, 1) if flag(anchor.attrs, "transpose_b") else (1, -1)
    elif anchor.op in _TRANSPOSED:
        if integer(anchor.attrs, "groups") != 1:
            return None
        shape = (1, -1) + (1,) * (weight.ndim - 2)
    else:
        if anchor.attrs["out_layout"] != PLAIN:
            return None
        shape = (-1,) + (1,) * (weight.ndim - 1)
    scaled = match.constant(weight * factor.reshape(shape))
    return match.op(anchor.op, match["x"], scaled, **anchor.attrs)


def _channel_vector(match: Match, name: str) -> Array | None:
    axis = _output_axis(match)
    extent = match.type.shape[axis]
    if not isinstance(extent, int):
        return None
    return per_channel(match.data(name), match.type.rank, axis, extent)


def _scaled_sum(match: Match) -> Value | None:
    """(anchor + b) c = anchor c + b c"""
    scaled = _scaled_anchor(match)
    if scaled is None:
        return None
    return match.op("add", scaled, match.constant(match.data("b") * match.data("c")))


def _scale_in_front(match: Match) -> Value | None:
    """Input channels multiplied by constants: the weights are, instead."""
    weight, root = match.data("w"), match.root
    if match["x"].type != match["scaled"].type:
        return None
    rank = match["x"].type.rank
    if root.op == "matmul":
        if weight.ndim != 2 or rank < 2 or flag(root.attrs, "transpose_a"):
            return None
        transposed = flag(root.attrs, "transpose_b")
        factor = per_channel(match.data("c"), rank, rank - 1, weight.shape[1 if transposed else 0])
        shape = (1, -1) if transposed else (-1, 1)
    else:
        if integer(root.attrs, "groups") != 1 or root.attrs["data_layout"] != PLAIN:
            return None
        factor = per_channel(match.data("c"), rank, 1, weight.shape[1])
        shape = (1, -1) + (1,) * (weight.ndim - 2)
    if factor is None:
        return None
    return match.op(root.op, match["x"], match.constant(weight * factor.reshape(shape)), **root.attrs)


_ANCHOR = op(("matmul", *_CONVOLUTIONS, *_TRANSPOSED), _X, _W, name="anchor", uses=1)
BATCH_NORM = (
    Rule(
        "batch-norm",
        op("batch_norm", _X, constant("s"), constant("b"), constant("m"), constant("v")),
        _batch_norm,
    ),
)
SCALES = (
    Rule("scale-anchor", op("mul", _ANCHOR, _C), _scaled_anchor),
    Rule("scale-sum", op("mul", op("add", _ANCHOR, constant("b"), uses=1), _C), _scaled_sum),
    Rule(
        "scale-in-front",
        op(("matmul", *_CONVOLUTIONS), op("mul", _X, _C, name="scaled", uses=1), _W),
        _scale_in_front,
    ),
)
