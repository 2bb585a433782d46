"""Tensors as GPUs from sm_90 on copy tiles of them to shared memory: what the driver is told of each."""

from __future__ import annotations

from dataclasses import dataclass

DRIVER_TYPES = {
    "uint8": 0, "int8": 0, "uint16": 1, "uint32": 2, "int32": 3, "int64": 5, "float16": 6, "float32": 7,
    "bfloat16": 9, "tf32": 11, "float8_e4m3fn": 0, "float8_e5m2": 0,
}  # fmt: skip
"""CUtensorMapDataType; bytes are copied, so the sign does not matter; copies round float32 to tf32."""
DRIVER_SWIZZLES = {0: 0, 128: 3}
"""CUtensorMapSwizzle by bytes of a line."""
MOST_RANK = 5
"""Axes of a map."""
LONGEST_BOX = 256


@dataclass(frozen=True)
class TileMap:
    """A tensor of `extents`, the first along memory, of which tiles of `box` elements are copied.

    Beyond the ends there are zeros. `strides` are bytes from one element to the next of each axis but the
    first, multiples of 16, as the address is; the first element lies `begin` bytes behind it, such a
    multiple too. In shared memory a tile lies as lines of its first axis; with a `swizzle` of 128 bytes,
    chunk c of 16 bytes of line l is at c ^ (l mod 8).
    Source: CUDA Driver API reference, cuTensorMapEncodeTiled.
    """

    dtype: str
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 128
    begin: int = 0
