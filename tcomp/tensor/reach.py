"""How many elements of a tensor a kernel can count: their positions are numbers of 32 bits, on every target.

Bytes are not counted so: positions are added to pointers of 64 bits, and the arena and weights may have any
size.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tcomp.errors import UnsupportedError
from tcomp.relay.types import TensorType
from tcomp.tvm_api import PrimFunc, structural_walk, tirx

REACH = 2**31 - 2**16
"""Elements of a tensor or of a scratch buffer, at most: beyond it positions wrap around. Threads and tiles
count further than the last element, by less than 2^16."""
_REMEDY = "take a smaller batch, or split the tensor in the model"


def check_reach(type_: TensorType, what: str) -> None:
    """Raise UnsupportedError where `what`, of a static type, has more elements than positions reach."""
    _check(prod(type_.static_shape), f"{what} is {type_}")


def check_buffers(function: PrimFunc) -> None:
    """Raise UnsupportedError where a scheduled function has a larger buffer, packed or of its own."""
    buffers: list[Any] = list(function.params)

    def on_allocation(found: Any) -> None:
        buffers.append(found.buffer)

    structural_walk(function.body, [(tirx.AllocBuffer, on_allocation)])
    for buffer in buffers:
        shape = [int(d) for d in buffer.shape]
        _check(prod(shape), f"buffer `{buffer.name}` of a kernel is {shape}")


def _check(elements: int, subject: str) -> None:
    if elements > REACH:
        raise UnsupportedError(f"{subject}, {elements} elements; kernels count {REACH} of one: {_REMEDY}")
