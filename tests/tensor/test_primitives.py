"""Overlapping tiles: what they cover, and what code they become."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcomp.errors import ScheduleError
from tcomp.tensor.primitives import Tiles, store_by_tile
from tcomp.tvm_api import te, tvm


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


def _tiled(extent: int, tiles: Tiles) -> tuple[object, str]:
    data = te.placeholder((extent,), name="data")
    bias = te.placeholder((extent,), name="bias")
    part = te.compute((tiles.count, tiles.size), lambda t, r: data(tiles.base(t) + r) * 2, name="part")
    out = te.compute((extent,), lambda i: part(*tiles.locate(i)) + bias(i), name="out")
    function = te.create_prim_func([data, bias, out])
    return function, "out"


def test_output_runs_by_tiles() -> None:
    tiles = Tiles.of(10, 4)
    function, block = _tiled(10, tiles)
    tiled = store_by_tile(function, block, "part", lambda t, r: [tiles.base(t) + r])
    text = str(tiled.script())
    assert "out[T.min(v_tile0 * 4, 6) + v_tile1]" in text
    assert "bias[T.min(v_tile0 * 4, 6) + v_tile1]" in text
    module = tvm.compile(tiled, target="llvm")
    arrays = [np.arange(10, dtype="float32"), np.ones(10, "float32"), np.zeros(10, "float32")]
    tensors = [tvm.runtime.tensor(a, tvm.cpu()) for a in arrays]
    module["main"](*tensors)
    np.testing.assert_array_equal(tensors[2].numpy(), 2 * arrays[0] + 1)


def test_unknown_stage_is_named() -> None:
    tiles = Tiles.of(10, 4)
    function, _ = _tiled(10, tiles)
    with pytest.raises(ScheduleError, match="`other`"):
        store_by_tile(function, "other", "part", lambda t, r: [tiles.base(t) + r])
