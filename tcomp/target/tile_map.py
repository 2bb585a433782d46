"""Tensors as GPUs from sm_90 on copy tiles of them to shared memory: what the driver is told of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

DRIVER_TYPES = {
    "uint8": 0, "int8": 0, "uint16": 1, "uint32": 2, "int32": 3, "int64": 5, "float16": 6, "float32": 7,
    "bfloat16": 9, "tf32": 11, "float8_e4m3fn": 0, "float8_e5m2": 0,
}  # fmt: skip
"""CUtensorMapDataType; bytes are copied, so the sign does not matter; copies round float32 to tf32."""
LINE_BYTES = 128
"""Of a line of the widest swizzle, which tensor cores read."""
DRIVER_SWIZZLES = {0: 0, LINE_BYTES: 3}
"""CUtensorMapSwizzle by bytes of a line."""
MOST_RANK = 5
"""Axes of a map."""


@dataclass(frozen=True)
class Walk:
    """How the tap of a window that a copy brings goes from pixel to pixel of images: im2col mode.

    Pixels have one to three axes, each with an entry here, the innermost first. Where the first tap of a
    window lies is walked over, by `steps`, within a box: from `lower`, counted from the first pixel of an
    axis, to `upper`, counted from its last; behind an axis' end it goes on at its begin, one step of the next
    axis later, and in the next image behind the last. The tap that is copied lies further by an offset.
    Source: PTX ISA, "im2col mode"; the order of axes is that of CUTLASS.
    """

    lower: tuple[int, ...]
    upper: tuple[int, ...]
    steps: tuple[int, ...]

    MOST_STEP: ClassVar[int] = 8

    def is_within_reach(self, offsets: Sequence[int]) -> bool:
        """Whether a map can hold this, and an instruction `offsets` up to these."""
        bits = {1: 16, 2: 8, 3: 5}[len(self.steps)]
        return (
            all(-(1 << bits - 1) <= corner < 1 << bits - 1 for corner in (*self.lower, *self.upper))
            and all(offset < 1 << bits for offset in offsets)
            and all(step <= self.MOST_STEP for step in self.steps)
        )


@dataclass(frozen=True)
class TileMap:
    """A tensor of `extents`, the first along memory, of which tiles of `box` elements are copied.

    Beyond the ends there are zeros. `strides` are bytes from one element to the next of each axis but the
    first, multiples of 16, as the address is; the first element lies `begin` bytes behind it, such a
    multiple too. In shared memory a tile lies as lines of its first axis; with a `swizzle` of 128 bytes, a
    line, chunk c of 16 bytes of line l is at c ^ (l mod 8).

    With a `walk`, the axes are channels, those of pixels, and images, and `box` are channels and pixels.
    Source: CUDA Driver API reference, cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col.
    """

    dtype: str
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = LINE_BYTES
    begin: int = 0
    walk: Walk | None = None
