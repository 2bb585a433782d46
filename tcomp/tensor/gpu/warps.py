"""What the threads of a warp tell one another without memory."""

from __future__ import annotations

from collections.abc import Callable

from tcomp.tensor.loops import Buffer, Expression, Statement, constant
from tcomp.tensor.math import convert, dtype_of
from tcomp.tvm_api import tirx

WARP = 32
_EVERY_LANE = 0xFFFFFFFF
_SENT_AS = {
    "bfloat16": "float32",
    "bool": "int32",
    "int8": "int32",
    "uint8": "int32",
    "int16": "int32",
    "uint16": "int32",
}
"""Types that threads cannot exchange, and wider ones that they can."""


def from_lane(value: Expression, distance: int) -> Expression:
    """What the thread has whose number in the warp differs in the bit `distance`."""
    dtype = dtype_of(value)
    sent = _SENT_AS.get(dtype, dtype)
    mask = tirx.const(_EVERY_LANE, "uint32")
    taken = tirx.call_pure_extern(sent, "__shfl_xor_sync", mask, convert(value, sent), constant(distance))
    return convert(taken, dtype)


def from_first_lane(value: Expression) -> Expression:
    """What the first thread of the warp has, an int32, which all threads must ask for together.

    It is no pure call: bound to a variable it stays where that is, as uses may be by some threads alone.
    """
    mask = tirx.const(_EVERY_LANE, "uint32")
    return tirx.call_extern("int32", "__shfl_sync", mask, value, constant(0))


def combine_lanes(
    buffer: Buffer,
    index: list[Expression],
    lanes: int,
    combine: Callable[[Expression, Expression], Expression],
    stride: int = 1,
) -> list[Statement]:
    """Combine `buffer[index]` of every `lanes` threads of a warp; all of them get the result.

    These are a power of two, with numbers `stride` apart.
    """
    statements: list[Statement] = []
    distance = lanes * stride // 2
    while distance >= stride:
        value = buffer[tuple(index)]
        statements.append(tirx.BufferStore(buffer, combine(value, from_lane(value, distance)), index))
        distance //= 2
    return statements
