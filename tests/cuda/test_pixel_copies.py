"""Copies of pixels bring what the PTX ISA says, on an emulated GPU that reads their assembly."""

from __future__ import annotations

import numpy as np
import pytest
from device_programs import copying, dies, run

from tcomp.relay.types import Array
from tcomp.target.tile_map import TileMap, Walk

IMAGES = np.random.default_rng(0).integers(1, 1 << 16, (3, 5, 6, 16)).astype("uint16")
"""Images of 5x6 pixels, of 16 channels."""


def map_of(lower: tuple[int, int], upper: tuple[int, int], steps: tuple[int, int], pixels: int) -> TileMap:
    return TileMap("uint16", (16, 6, 5, 3), (32, 192, 960), (8, pixels), 0, walk=Walk(lower, upper, steps))


def copied(map_: TileMap, at: tuple[int, ...]) -> Array:
    """Lines of 8 channels."""
    pixels = map_.box[1]
    source, out = copying("tcomp_copy_pixels", at, pixels * 16), np.zeros(pixels * 4, "uint32")
    (lines,) = run(source, [IMAGES], [out], arch="sm_90a", shared_bytes=65536, maps=[(0, map_)])
    return lines.view("uint16").reshape(pixels, 8)


@pytest.mark.parametrize(
    ("kernel", "strides", "begin", "end", "first", "tap"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1), 0, (0, 0)),
        ((3, 3), (1, 1), (1, 1), (1, 1), 17, (2, 1)),
        ((2, 3), (2, 1), (0, 2), (1, 0), 3, (1, 2)),
        ((1, 1), (2, 3), (0, 0), (0, 0), 4, (0, 0)),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_pixels_are_copied(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    begin: tuple[int, int],
    end: tuple[int, int],
    first: int,
    tap: tuple[int, int],
) -> None:
    """One tap of the windows of 20 pixels of the output from number `first` on, across rows and images."""
    padded = np.pad(IMAGES, ((0, 0), *zip(begin, end, strict=True), (0, 0)))
    out = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:3], kernel, strides, strict=True)]
    (y, x), (down, across) = tap, strides
    windows = padded[:, y : y + (out[0] - 1) * down + 1 : down, x : x + (out[1] - 1) * across + 1 : across]
    rows = windows[..., 8:].reshape(-1, 8)[first : first + 20]
    expected = np.zeros((20, 8), "uint16")
    expected[: len(rows)] = rows

    image, place = divmod(first, out[0] * out[1])
    row, column = divmod(place, out[1])
    upper = tuple(e - (k - 1) for e, k in zip(end, kernel, strict=True))
    map_ = map_of((-begin[1], -begin[0]), (upper[1], upper[0]), (across, down), 20)
    at = (8, column * across - begin[1], row * down - begin[0], image, x, y)
    np.testing.assert_array_equal(copied(map_, at), expected)


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("at", "why"),
    [
        ((0, -2, 0, 0, 0, 0), "begins outside of the bounding box"),
        ((0, 5, 0, 0, 0, 0), "begins outside of the bounding box"),
        ((0, 0, 0, 0, 0, 256), "an offset that an instruction cannot have"),
        ((0, 0, 0, 0), "a tile of another kind of tensor"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_what_the_engine_cannot_do_is_told(
    at: tuple[int, ...], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    map_ = map_of((-1, -1), (-1, -1), (1, 1), 20)
    arguments = (copying("tcomp_copy_pixels", at, 320), [IMAGES], [np.zeros(80, "uint32")])
    assert dies(*arguments, arch="sm_90a", shared_bytes=65536, maps=[(0, map_)])
    assert why in capfd.readouterr().err
