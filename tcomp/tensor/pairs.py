"""Products of 16-bit floats, taken two at a time: 32-bit elements that hold neighbours of a reduction.

A matrix [M, K] of 16-bit elements is a matrix [M, K / 2] of pairs, each one `uint32` with the earlier
element in its low half. A kernel over pairs looks as one over float32: a scalar of the left operand is
broadcast, a vector of the right one loaded, and one instruction multiplies and adds. `PairSums` says which.

bfloat16 (AVX512-BF16): `vdpbf16ps` adds both products to a float32 sum. See `tcomp.tensor.bfloat16`.

float16 (AVX512-FP16): `vfmadd231ph` adds into a pair of float16 sums. Float16 carries 11 bits, so such short
sums take up few products and are then added to float32 sums. With `MOST_STEPS` products a half, their
rounding adds an error of the size of bfloat16's rounding of the operands, measured on random matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.relay.types import Array
from tcomp.target.target import Target
from tcomp.tensor import bfloat16
from tcomp.tensor.intrinsics import Expression, call, dtype_of, lanes_of, register, spread, vector
from tcomp.tensor.register_tile import ShortSums
from tcomp.tvm_api import tirx

PAIR = "uint32"
"""The element type of a pair."""
MOST_STEPS = 96
"""Products that one half of a pair of float16 sums takes up before it is added to the float32 sum."""


@dataclass(frozen=True)
class PairSums:
    """How products of pairs of one 16-bit type are summed.

    `multiply_add(total, left, right)` adds both products of a step; `short` says what it adds them to, where
    that is not float32.
    """

    multiply_add: Callable[[Expression, Expression, Expression], Expression]
    short: ShortSums | None = None


def multiplies_pairs(target: Target, dtype: str) -> bool:
    """Whether `target` multiplies pairs of `dtype` faster than float32."""
    return dtype == target.fast_dtype


def pair_sums(dtype: str) -> PairSums:
    """The sums of a 16-bit type."""
    if dtype == "bfloat16":
        return PairSums(bfloat16.multiply_add)
    return PairSums(_half_multiply_add, ShortSums(PAIR, tirx.const(0, PAIR), _half_widened_sum, MOST_STEPS))


def joined(low: Expression, high: Expression) -> Expression:
    """Two 16-bit elements as a pair."""
    parts = [tirx.reinterpret("uint16", x).astype(PAIR) for x in (low, high)]
    return tirx.bitwise_or(parts[0], tirx.shift_left(parts[1], tirx.const(16, PAIR)))


def as_pairs(buffer: Any, name: str) -> tuple[Any, Any]:
    """A declaration that `buffer`, of even innermost extent, also is a buffer of pairs, and that buffer."""
    shape = [*buffer.shape[:-1], int(buffer.shape[-1]) // 2]
    pairs = tirx.decl_buffer(shape, PAIR, name=name, data=buffer.data)
    return tirx.DeclBuffer(pairs, data=buffer.data), pairs


def pack_pairs(array: Array) -> Array:
    """`[..., k, n]` of a 16-bit type -> `[..., k / 2, n]` of pairs, a missing last row being zero."""
    bits = array.view(np.uint16)
    if bits.shape[-2] % 2:
        bits = np.concatenate([bits, np.zeros_like(bits[..., :1, :])], axis=-2)
    low, high = (bits[..., half::2, :].astype(np.uint32) for half in (0, 1))
    return np.asarray(low | (high << np.uint32(16)))


def _half_multiply_add(total: Expression, left: Expression, right: Expression) -> Expression:
    """`total + left * right` in both halves of float16 pairs, rounded once."""
    return call("half_multiply_add", PAIR, total, left, right)


def _half_widened_sum(pair: Expression) -> Expression:
    """The sum of both halves of a float16 pair as float32."""
    return call("half_widened_sum", "float32", pair)


def _halves(pair: Expression) -> Expression:
    return tirx.reinterpret(vector("float16", 2 * lanes_of(pair)), pair)


def _lower_multiply_add(operands: Sequence[Expression]) -> Expression:
    total, left, right = operands
    halves = [_halves(x) for x in (left, right, total)]
    result = tirx.call_llvm_pure_intrin(dtype_of(halves[0]), "llvm.fma", *halves)
    return tirx.reinterpret(dtype_of(total), result)


def _lower_widened_sum(operands: Sequence[Expression]) -> Expression:
    (pair,) = operands
    lanes = lanes_of(pair)
    shift = spread(tirx.const(16, PAIR), lanes)
    total = tirx.reinterpret(dtype_of(pair), _halves(pair) + _halves(tirx.shift_right(pair, shift)))
    low = tirx.reinterpret(vector("float16", lanes), total.astype(vector("uint16", lanes)))
    return low.astype(vector("float32", lanes))


register("half_multiply_add", _lower_multiply_add)
register("half_widened_sum", _lower_widened_sum)
