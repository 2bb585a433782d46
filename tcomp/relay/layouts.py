"""Channel layouts: plain `NCHW` and blocked `NCHW16c`.

The names are used for any number of spatial axes. A blocked tensor of C channels has shape
[N, ceil(C / block), *spatial, block]; the lanes beyond C in the last block hold zeros.
"""

from __future__ import annotations

import re

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.relay.dims import Dim
from tcomp.relay.types import Array

PLAIN = "NCHW"
_BLOCKED = re.compile(r"NCHW([1-9][0-9]*)c")


def channel_block(layout: str) -> int | None:
    """Channels in a block of `layout`; None for the plain layout.

    Raises TypeRuleError for a name that is neither.
    """
    if layout == PLAIN:
        return None
    match = _BLOCKED.fullmatch(layout)
    if match is None:
        raise TypeRuleError(f"unknown layout `{layout}`; it must be NCHW or blocked, such as NCHW16c")
    return int(match[1])


def layout_shape(batch: Dim, channels: Dim, spatial: tuple[Dim, ...], layout: str) -> tuple[Dim, ...]:
    """The shape in which `layout` stores a [batch, channels, *spatial] tensor."""
    block = channel_block(layout)
    if block is None:
        return (batch, channels, *spatial)
    return (batch, (channels + (block - 1)) // block, *spatial, block)


def to_layout(array: Array, layout: str) -> Array:
    """A plain [N, C, *spatial] array stored in `layout`."""
    block = channel_block(layout)
    if block is None:
        return array
    batch, channels, *spatial = array.shape
    blocks = -(-channels // block)
    padded = np.zeros((batch, blocks * block, *spatial), array.dtype)
    padded[:, :channels] = array
    split = padded.reshape(batch, blocks, block, *spatial)
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


def from_layout(array: Array, layout: str, channels: int) -> Array:
    """The plain [N, channels, *spatial] array that `array` stores in `layout`."""
    block = channel_block(layout)
    if block is None:
        return array
    batch, blocks, *spatial, _ = array.shape
    joined = np.moveaxis(array, -1, 2).reshape(batch, blocks * block, *spatial)
    return joined[:, :channels]
