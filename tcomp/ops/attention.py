"""Scaled dot-product attention: softmax(q k^T scale + mask) v over the last two axes.

A mask of truth values is not added: where it is false a key is hidden, and has the score `hidden`. With
`zero_nan` weights that are no numbers are zeros, such as those of queries all of whose scores are -inf.
`causal` is 0 where every query sees all keys; else the first query sees so many, and each after it one more:
1 is the lower triangle with the upper left corner, 1 + p that of queries that follow p past keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.ops.reducers import any_largest
from tcomp.ops.shapes import (
    accumulator,
    broadcast_index,
    broadcast_shapes,
    cast_tensor,
    exact,
    same_dtype,
    static_shape,
)
from tcomp.relay.attributes import dim, flag, integer, number
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import REQUIRED, Cost, FusionKind, Op, Sample, declare
from tcomp.relay.types import FLOATS, Array, TensorType
from tcomp.tvm_api import Tensor, te, tirx


def _infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    dtype = same_dtype("attention", types[:3])
    if len(types) == 4 and types[3].dtype not in (dtype, accumulator(dtype), "bool"):
        raise TypeRuleError(
            f"`attention` mask {types[3]} is of neither {dtype}, the type of its sums, nor bool"
        )
    number(attrs, "scale")
    number(attrs, "hidden")
    flag(attrs, "zero_nan")
    causal = dim(attrs, "causal")
    if isinstance(causal, int) and causal < 0:
        raise TypeRuleError(f"`attention` has causal={attrs['causal']}; it is 0 or keys that one query sees")
    query, key, value = types[:3]
    if dtype not in FLOATS or min(t.rank for t in types[:3]) < 2:
        raise TypeRuleError("`attention` takes floating-point q[...,S,D], k[...,T,D], v[...,T,E]")
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise TypeRuleError(
            f"`attention` takes q[...,S,D], k[...,T,D], v[...,T,E], not {query}, {key}, {value}"
        )
    batch = broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    scores = (*batch, query.shape[-2], key.shape[-2])
    if len(types) == 4 and broadcast_shapes(scores, types[3].shape) != scores:
        raise TypeRuleError(f"`attention` mask {types[3]} does not broadcast to the scores {scores}")
    return [TensorType((*batch, query.shape[-2], value.shape[-1]), dtype)]


def _evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    query, key, value, *masks = (exact(a) for a in arrays)
    scores = np.matmul(query, np.swapaxes(key, -1, -2)) * query.dtype.type(number(attrs, "scale"))
    for mask in masks:
        is_added = mask.dtype != np.bool_
        hidden = np.asarray(number(attrs, "hidden"), scores.dtype)
        scores = scores + mask if is_added else np.where(mask, scores, hidden)
    causal = integer(attrs, "causal")
    if causal:
        rows, length = scores.shape[-2:]
        scores = np.where(np.tri(rows, length, causal - 1, dtype=np.bool_), scores, -np.inf)
    weights: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    if flag(attrs, "zero_nan"):
        weights[np.isnan(weights)] = 0
    return [np.matmul(weights, value).astype(arrays[0].dtype)]


def _compute(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    query, key, value = inputs[:3]
    shape, wide = outputs[0].static_shape, accumulator(outputs[0].dtype)
    length, depth = static_shape(key)[-2:]
    score_shape = (*shape[:-1], length)
    scale, hidden = (tirx.const(number(attrs, name), wide) for name in ("scale", "hidden"))
    d = te.reduce_axis((0, depth), name="d")
    highest_axis, total_axis, t = (te.reduce_axis((0, length), name=name) for name in ("h", "u", "t"))

    def at(tensor: Tensor, batch: Sequence[Any], row: Any, column: Any) -> Any:
        return tensor(*broadcast_index(static_shape(tensor)[:-2], batch), row, column).astype(wide)

    def dot(*index: Any) -> Any:
        *batch, row, column = index
        return te.sum(at(query, batch, row, d) * at(key, batch, column, d), axis=d)

    products = te.compute(score_shape, dot, name="scores")

    causal = integer(attrs, "causal")

    def scaled(*index: Any) -> Any:
        score = products(*index) * scale
        if len(inputs) > 3:
            mask = inputs[3](*broadcast_index(static_shape(inputs[3]), index))
            is_added = inputs[3].dtype != "bool"
            score = score + mask.astype(wide) if is_added else tirx.Select(mask, score, hidden)
        if not causal:
            return score
        return tirx.Select(index[-1] < index[-2] + causal, score, tirx.const(-inf, wide))

    scores = te.compute(score_shape, scaled, name="masked")

    def highest(*row: Any) -> Any:
        return any_largest(scores(*row, highest_axis), axis=highest_axis)

    top = te.compute(shape[:-1], highest, name="highest")

    def exponential(*index: Any) -> Any:
        return tirx.exp(scores(*index) - top(*index[:-1]))

    weights = te.compute(score_shape, exponential, name="weights")

    def total(*row: Any) -> Any:
        return te.sum(weights(*row, total_axis), axis=total_axis)

    totals = te.compute(shape[:-1], total, name="total")

    def weighted(*index: Any) -> Any:
        *batch, row, column = index
        return te.sum(weights(*batch, row, t) * at(value, batch, t, column), axis=t)

    sums = te.compute(shape, weighted, name="weighted")

    def normalized(*index: Any) -> Any:
        total = totals(*index[:-1])
        value = sums(*index) / total
        return tirx.Select(total > 0, value, tirx.const(0, wide)) if flag(attrs, "zero_nan") else value

    result = te.compute(shape, normalized, name="attention")
    return [cast_tensor(result, outputs[0].dtype)]


def visible_pairs(rows: int, length: int, causal: int) -> int:
    """Pairs of a query and a key that it sees."""
    if not causal:
        return rows * length
    limited = min(rows, max(0, length - causal))
    return limited * causal + limited * (limited - 1) // 2 + (rows - limited) * length


def _cost(inputs: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]) -> Cost:
    (length, depth), (*batch, rows, width) = inputs[1].static_shape[-2:], outputs[0].static_shape
    seen = visible_pairs(rows, length, integer(attrs, "causal"))
    flops = prod(batch) * seen * (2 * depth + 2 * width + 5)
    return Cost(flops, sum(t.nbytes for t in (*inputs, *outputs)))


def _sample(
    *shapes: tuple[int, ...], dtype: str = "float32", scale: float = 0.5, causal: int = 0, tol: float = 1e-5
) -> Sample:
    attrs = {"scale": scale, "causal": causal}
    return Sample(tuple(TensorType(s, dtype) for s in shapes), attrs, rtol=tol, atol=tol)


def _hiding(
    queries: tuple[int, ...], mask: tuple[int, ...], dtype: str = "float32", tol: float = 1e-5, **attrs: Attr
) -> Sample:
    """Nine keys, of which a mask hides some: all of them from the first query, where rows differ."""
    keys = TensorType((*queries[:-2], 9, queries[-1]), dtype)
    shown = np.arange(prod(mask)).reshape(mask) % 3 > 0
    if mask[-2] > 1 and ("hidden" in attrs or "zero_nan" in attrs):
        shown[..., 0, :] = False
    types = (TensorType(queries, dtype), keys, keys, TensorType(mask, "bool"))
    return Sample(types, {"scale": 0.5, **attrs}, inputs={3: shown}, rtol=tol, atol=tol)


declare(
    Op(
        name="attention",
        infer=_infer,
        evaluate=_evaluate,
        compute=_compute,
        kind=FusionKind.CONTRACTION,
        takes_movement=True,
        attrs={"scale": REQUIRED, "causal": 0, "hidden": -inf, "zero_nan": False},
        arity=(3, 4),
        cost=_cost,
        samples=(
            _sample((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7)),
            _sample((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7), (2, 1, 1, 6), scale=0.25),
            _sample((5, 4), (6, 4), (6, 3), (5, 6)),
            _sample((2, 4, 5, 8), (2, 1, 5, 8), (2, 1, 5, 8), scale=0.35),
            _sample((3, 4), (5, 4), (5, 2), dtype="float64"),
            _sample((2, 7, 4), (2, 7, 4), (2, 7, 3), causal=1),
            _sample((2, 2, 5, 4), (2, 1, 9, 4), (2, 1, 9, 3), (2, 1, 1, 9), causal=5),
            _sample((2, 4, 8), (2, 4, 8), (2, 4, 8), dtype="float16", tol=5e-3),
            _sample((2, 4, 8), (2, 4, 8), (2, 4, 8), dtype="bfloat16", tol=4e-2),
            Sample(
                (*(TensorType((2, 4, 8), "bfloat16"),) * 3, TensorType((4, 4))), {"scale": 0.5}, atol=4e-2
            ),
            _hiding((2, 3, 5, 4), (2, 1, 5, 9)),
            _hiding((2, 5, 4), (5, 9), hidden=-65504.0, causal=5),
            _hiding((2, 5, 4), (2, 5, 9), dtype="float16", tol=5e-3, zero_nan=True),
            _hiding((3, 5, 8), (1, 9), dtype="bfloat16", tol=4e-2, hidden=0.25),
        ),
    )
)
