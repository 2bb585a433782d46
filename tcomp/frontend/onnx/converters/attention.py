"""Scaled dot-product attention (opset 23)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod

import numpy as np
import onnx

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.axes import static_dim
from tcomp.frontend.onnx.context import SHAPE_REMEDY, Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.relay.dims import Dim, product
from tcomp.relay.graph import Constant, Value

_MASK, _PAST_KEY, _PAST_VALUE, _LENGTHS = 3, 4, 5, 6
_PRODUCTS = 3
"""The output that has the scores."""
_NO_WINDOW = -1


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether it is softmax(q k^T scale + mask) v, and no more: no softcap, window, or lengths of a cache."""
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    windows = [attrs.get(f"{side}_window_size", _NO_WINDOW) for side in ("left", "right")]
    more = any(node.input[_LENGTHS:]) or any(node.output[_PRODUCTS:])
    return not more and attrs.get("softcap", 0.0) == 0 and windows == [_NO_WINDOW] * 2


@dataclass(frozen=True)
class _Heads:
    """Heads `[kv_heads, group]` of queries, of which a group shares keys and values; no `group` axis of one.

    Operands are `[batch, heads, rows, size]` or, merged, `[batch, rows, heads * size]`.
    """

    ctx: Context
    kv_heads: int
    group: int

    @staticmethod
    def of(ctx: Context, node: OnnxNode, query: Value, key: Value) -> _Heads:
        if query.type.rank == 3:
            heads, kv_heads = node.integer("q_num_heads"), node.integer("kv_num_heads")
        else:
            heads, kv_heads = (static_dim(x, 1, "its number of heads") for x in (query, key))
        if kv_heads < 1 or heads % kv_heads:
            raise ModelError(f"{heads} heads of queries do not share {kv_heads} of keys and values")
        return _Heads(ctx, kv_heads, heads // kv_heads)

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.kv_heads,) if self.group == 1 else (self.kv_heads, self.group)

    def of_queries(self, x: Value) -> Value:
        """`[batch, *axes, rows, size]`."""
        if x.type.rank == 4:
            return self.ctx.reshape(x, (x.shape[0], *self.axes, *x.shape[2:]))
        count = len(self.axes)
        rows = self.ctx.reshape(x, (*x.shape[:2], *self.axes, self._size(x, prod(self.axes))))
        return self.ctx.transpose(rows, (0, *range(2, 2 + count), 1, 2 + count))

    def of_keys(self, x: Value) -> Value:
        """Keys or values as `[batch, kv_heads, rows, size]`."""
        if x.type.rank == 4:
            return x
        rows = self.ctx.reshape(x, (*x.shape[:2], self.kv_heads, self._size(x, self.kv_heads)))
        return self.ctx.transpose(rows, (0, 2, 1, 3))

    def shared(self, x: Value) -> Value:
        """Keys or values with an axis that broadcasts to that of the group."""
        ones = (1,) * (len(self.axes) - 1)
        return self.ctx.reshape(x, (*x.shape[:2], *ones, *x.shape[2:]))

    def of_mask(self, mask: Value) -> Value:
        """A mask that broadcasts to `[batch, heads, rows, keys]`."""
        if mask.type.rank < 3:
            return mask
        axes = (1,) * len(self.axes) if mask.shape[-3] == 1 else self.axes
        return self.ctx.reshape(mask, (*mask.shape[:-3], *axes, *mask.shape[-2:]))

    def merged(self, result: Value) -> Value:
        """`[batch, *axes, rows, size] -> [batch, rows, heads * size]`."""
        count = len(self.axes)
        rows = self.ctx.transpose(result, (0, 1 + count, *range(1, 1 + count), 2 + count))
        return self.ctx.reshape(rows, (*rows.shape[:2], product(rows.shape[2:])))

    def _size(self, x: Value, heads: int) -> int:
        hidden = static_dim(x, 2, "the size of its rows")
        if hidden % heads:
            raise ModelError(f"{heads} heads do not share rows of {hidden}")
        return hidden // heads


@converter("Attention", since=23, takes=_is_plain)
def attention(ctx: Context, node: OnnxNode) -> Sequence[Value]:
    query, key, value = (node.input(i) for i in range(3))
    if {query.type.rank, key.type.rank, value.type.rank} not in ({3}, {4}):
        raise ModelError("its queries, keys and values must all have three axes, or all four")
    heads = _Heads.of(ctx, node, query, key)
    is_merged = query.type.rank == 3
    query, key, value = heads.of_queries(query), heads.of_keys(key), heads.of_keys(value)
    past, past_value = node.optional(_PAST_KEY), node.optional(_PAST_VALUE)
    if (past is None) != (past_value is None):
        raise ModelError("it has one of past key and past value; it takes both or none")
    before: Dim = 0
    if past is not None and past_value is not None:
        before = past.shape[2]
        key, value = ctx.op("concat", past, key, axis=2), ctx.op("concat", past_value, value, axis=2)
    causal: Dim = before + 1 if node.integer("is_causal", 0) else 0
    scale = node.real("scale", static_dim(key, 3, "the size of its heads") ** -0.5)
    operands = [query, heads.shared(key), heads.shared(ctx.cast(value, query.dtype))]
    mask = _mask(ctx, node.optional(_MASK), query.dtype, key.shape[2])
    if mask is not None:
        operands.append(heads.of_mask(mask))
    result = ctx.op("attention", *operands, scale=scale, causal=causal)
    if mask is not None:
        result = _without_blind_rows(ctx, result, operands[3], query.shape[-2], key.shape[2], causal)
    if is_merged:
        result = heads.merged(result)
    else:
        result = ctx.reshape(result, (*node.input(0).shape[:3], result.shape[-1]))
    return [result, key, value][: len(node.output_names)]


def _mask(ctx: Context, mask: Value | None, dtype: str, keys: Dim) -> Value | None:
    """What is added to scores. Keys behind the last of the mask are hidden."""
    if mask is None:
        return None
    if mask.dtype == "bool":
        mask = ctx.op("where", mask, ctx.constant(0, dtype), ctx.constant(-inf, dtype))
    if mask.shape[-1] == keys:
        return mask
    missing = keys - mask.shape[-1]
    hidden = ctx.broadcast_to(ctx.constant(-inf, mask.dtype), (*mask.shape[:-1], missing))
    return ctx.op("concat", mask, hidden, axis=mask.type.rank - 1)


def _without_blind_rows(ctx: Context, result: Value, mask: Value, rows: Dim, keys: Dim, causal: Dim) -> Value:
    """Zeros for queries that see no key, of which softmax would make what is no number.

    The mask decides, as ONNX says: with the attribute `zero_nan` of `attention` queries that are no numbers
    themselves would be zeros too.
    """
    if causal != 0:
        if not (isinstance(rows, int) and isinstance(keys, int) and isinstance(causal, int)):
            raise UnsupportedError(f"beside a mask, causal attention has static shapes; {SHAPE_REMEDY}")
        seen = np.tri(rows, keys, causal - 1, dtype=np.bool_)
        mask = ctx.op("add", mask, ctx.constant(np.where(seen, 0, -inf), mask.dtype))
    most = ctx.op("reduce_max", mask, axes=(mask.type.rank - 1,), keepdims=True)
    blind = ctx.op("equal", most, ctx.constant(-inf, mask.dtype))
    if isinstance(blind, Constant) and not blind.data.any():
        return result
    return ctx.op("where", blind, ctx.constant(0, result.dtype), result)
