"""Overlapping tiles: what they cover."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcomp.tensor.cpu.primitives import Tiles


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 5))
def test_tiles_cover_the_axis_and_stay_inside(extent: int, size: int, multiple: int) -> None:
    tiles = Tiles.of(extent, size, multiple)
    covered = {tiles.base(t) + i for t in range(tiles.count) for i in range(tiles.size)}
    assert covered == set(range(extent))
    assert tiles.count % multiple == 0
    for index in range(extent):
        tile, place = tiles.locate(index)
        assert 0 <= tile < tiles.count
        assert 0 <= place < tiles.size
        assert tiles.base(tile) + place == index


@given(st.integers(1, 200), st.integers(1, 40))
def test_tiles_with_a_rest_cover_every_element_once(extent: int, size: int) -> None:
    tiles = Tiles.with_rest(extent, size)
    sizes = [tiles.size] * (tiles.count - 1) + [tiles.rest or tiles.size]
    covered = [tiles.base(t) + i for t, n in enumerate(sizes) for i in range(n)]
    assert covered == list(range(extent))
    for index in range(extent):
        tile, place = tiles.locate(index)
        assert tiles.base(tile) + place == index
