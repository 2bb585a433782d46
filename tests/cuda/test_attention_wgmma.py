"""Attention by groups of warps computes what the reference does, on an emulated GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from attention_runs import assert_matches, built
from test_attention_cuda import arrays_of, attention
from test_attention_mma import merged, narrow

from tcomp.relay.builder import GraphBuilder
from tcomp.target.target import TARGETS
from tcomp.tensor.attention.wgmma_operands import TiledAttentionOperands
from tcomp.tensor.attention.wgmma_plan import WgmmaAttentionPlan
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import TEMPLATES

SMALL = {"consumers": 1, "tile_n": 64, "stages": 2, "turns": 0}
TURNS = {"consumers": 2, "turns": 1}
TEMPLATE = "attention_wgmma_cuda"
HOPPER = TARGETS["cuda:sm_90a"]


def tokens_first(queries: int, keys: int, heads: int, shared: int, size: int) -> Kernel:
    """Heads `[token, head, size]` in memory, `shared` of them for the same keys and values."""
    g = GraphBuilder()

    def heads_of(name: str, tokens: int, groups: tuple[int, int]) -> object:
        x = g.op("reshape", g.input(name, (tokens, groups[0] * groups[1], size), "float16"),
                 shape=(tokens, *groups, size))  # fmt: skip
        return g.op("transpose", x, axes=(1, 2, 0, 3))

    own = heads_of("q", queries, (heads // shared, shared))
    others = [heads_of(name, keys, (heads // shared, 1)) for name in ("k", "v")]
    return Kernel(g.build(g.op("attention", own, *others, scale=0.3)))  # pyright: ignore


CASES: dict[str, tuple[Kernel, dict[str, int]]] = {
    "whole tiles": (narrow((2, 64, 64), (2, 128, 64), (2, 128, 64)), {}),
    "bfloat16, ragged, turns": (
        narrow((1, 150, 64), (1, 170, 64), (1, 170, 64), dtype="bfloat16"), TURNS,
    ),
    "ragged": (narrow((37, 24), (45, 24), (45, 40)), {}),
    "heads of 80, three stages": (narrow((2, 40, 80), (2, 300, 80), (2, 300, 80)), {"stages": 3}),
    "heads of 128, three groups": (
        narrow((1, 200, 128), (1, 200, 128), (1, 200, 128)), {"consumers": 3, "turns": 1},
    ),
    "three groups in turns, long tiles": (
        narrow((1, 192, 64), (1, 400, 64), (1, 400, 64)), {"consumers": 3, "turns": 1, "tile_n": 128},
    ),
    "no turns": (narrow((1, 100, 64), (1, 200, 64), (1, 200, 64)), {"consumers": 2}),
    "192 columns": (narrow((1, 20, 40), (1, 150, 40), (1, 150, 180)), {"tile_n": 128}),
    "tiles of 192 keys": (narrow((1, 64, 32), (1, 400, 32), (1, 400, 32)), {"tile_n": 192}),
    "more stages than steps": (narrow((1, 10, 32), (1, 20, 32), (1, 20, 32)), {"stages": 4}),
    "grouped heads": (narrow((2, 4, 9, 16), (2, 1, 33, 16), (2, 1, 33, 32), (2, 1, 1, 33)), {}),
    "two groups of heads": (narrow((2, 2, 3, 7, 16), (2, 2, 1, 70, 16), (2, 1, 70, 24)), {}),
    "grouped heads, tokens first": (tokens_first(20, 70, 6, 3, 16), {}),
    "one token of grouped heads": (tokens_first(1, 100, 6, 3, 16), {}),
    "a mask for each row and head": (
        narrow((2, 3, 40, 16), (2, 3, 80, 16), (2, 3, 80, 16), (3, 40, 80), dtype="bfloat16"), {},
    ),
    "merged projection": (merged(), {}),
    "rows that are not whole chunks": (narrow((2, 20, 20), (2, 80, 20), (2, 80, 12)), {}),
    "negative scale": (narrow((1, 20, 16), (1, 40, 16), (1, 40, 16), scale=-0.4), {}),
    "transposed result": (narrow((3, 12, 16), (3, 70, 16), (3, 70, 32), after="heads last"), {}),
}  # fmt: skip
FEW = ("bfloat16, ragged, turns", "heads of 80, three stages", "grouped heads", "merged projection")
"""Those that are always tested: g++ takes long for each."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in CASES]
)
@pytest.mark.usefixtures("gpu")
def test_numbers(name: str) -> None:
    kernel, knobs = CASES[name]
    assert_matches(TEMPLATE, kernel, {**SMALL, **knobs}, HOPPER)


PERSISTENT: dict[str, tuple[Kernel, dict[str, int]]] = {
    "turns": (narrow((3, 500, 64), (3, 200, 64), (3, 200, 64)), {**TURNS, "stages": 3}),
    "one step": (narrow((14, 60, 16), (14, 50, 16), (14, 50, 24), dtype="bfloat16"), {}),
    "two steps, mask": (narrow((5, 4, 50, 16), (5, 1, 90, 16), (5, 1, 90, 16), (5, 1, 1, 90)), {}),
    "three groups in turns": (narrow((5, 190, 32), (5, 300, 32), (5, 300, 32)), {"consumers": 3, "turns": 1}),
    "a tile each": (narrow((2, 60, 16), (2, 100, 16), (2, 100, 16)), {}),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in ("turns", "one step") else [pytest.mark.slow]) for n in PERSISTENT],
)
@pytest.mark.usefixtures("gpu")
def test_numbers_of_persistent_blocks(name: str) -> None:
    """On a GPU of one multiprocessor, where all but the last case have more tiles than blocks."""
    kernel, knobs = PERSISTENT[name]
    assert HOPPER.gpu is not None
    gpu = replace(HOPPER.gpu, processors=1)
    config = {**SMALL, **knobs, "persistent": 1}
    plan = WgmmaAttentionPlan.of(config, TiledAttentionOperands(kernel).shape)
    assert (plan.grid(gpu) < plan.blocks) == (name != "a tile each")
    assert_matches(TEMPLATE, kernel, config, replace(HOPPER, gpu=gpu))


@pytest.mark.parametrize("hidden", [-np.inf, pytest.param(np.finfo(np.float32).min, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("gpu")
def test_masks_that_hide_whole_tiles(hidden: float) -> None:
    """A causal mask, and a first and a last tile of keys that no row sees."""
    g = GraphBuilder()
    operands = [g.input(n, (1, rows, 16), "float16") for n, rows in (("q", 48), ("k", 200), ("v", 200))]
    kernel = Kernel(g.build(g.op("attention", *operands, g.input("mask", (48, 200)), scale=0.3)))
    arrays = arrays_of(kernel)
    rows, keys = np.arange(48)[:, None], np.arange(200)[None]
    arrays[3] = np.where((keys >= 65) & (keys <= rows + 80), 0, hidden).astype(np.float32)
    assert_matches(TEMPLATE, kernel, SMALL, HOPPER, arrays)


@pytest.mark.usefixtures("gpu")
def test_what_is_not_a_number_stays_in_its_row() -> None:
    """Nor do values beyond the last of a head count, which are those of the next."""
    kernel = narrow((2, 20, 16), (2, 40, 16), (2, 40, 16))
    arrays = arrays_of(kernel)
    arrays[0][0, 3, 5] = np.nan
    arrays[2][1, 0] = np.nan
    (found,) = built(TEMPLATE, kernel, SMALL, HOPPER)(arrays)
    assert np.isnan(found[0, 3]).all()
    assert np.isfinite(np.delete(found[0], 3, axis=0)).all()


def test_what_is_fetched_where_it_lies() -> None:
    """Slices and transposes are; heads that no axis of a map joins to rows are matrices of their own."""
    plain = TiledAttentionOperands(narrow((2, 4, 9, 16), (2, 1, 33, 16), (2, 1, 33, 32)))
    assert (plain.moved, plain.shape.batch, plain.shape.rows) == ((), 2, 36)
    assert TiledAttentionOperands(merged()).moved == ()
    apart = TiledAttentionOperands(tokens_first(20, 70, 6, 3, 16))
    assert (apart.moved, apart.shape.batch, apart.shape.rows) == ((), 6, 20)
    one = TiledAttentionOperands(tokens_first(1, 100, 6, 3, 16))
    assert (one.moved, one.shape.batch, one.shape.rows) == ((), 2, 3)
    ragged = TiledAttentionOperands(narrow((2, 20, 20), (2, 80, 20), (2, 80, 12)))
    assert len(ragged.moved) == 3


def test_which_kernels_it_takes() -> None:
    template, half = TEMPLATES[TEMPLATE], narrow((2, 8, 16), (2, 8, 16), (2, 8, 16))
    assert template.accepts(half, HOPPER)
    assert not template.accepts(half, TARGETS["cuda:sm_90"])
    assert not template.accepts(half, TARGETS["cuda:sm_80"])
    assert not template.accepts(attention((2, 8, 16), (2, 8, 16), (2, 8, 16)), HOPPER)
    wide = narrow((2, 8, 16), (2, 8, 16), (2, 8, 264))
    assert not template.accepts(wide, HOPPER)


@pytest.mark.parametrize(("size", "first"), [(128, "attention_cuda"), (256, "attention_mma_cuda")])
def test_it_stands_beside_the_others(size: int, first: str) -> None:
    """Heads too wide for plain instructions leave it and `mma.sync`."""
    kernel = narrow((16, 1024, size), (16, 1024, size), (16, 1024, size))
    template = template_for(kernel, HOPPER)
    assert template.name == first
    assert TEMPLATE in template.algorithms
    assert template.id_of(template.space(kernel, HOPPER).default).startswith(TEMPLATE)


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"turns": 1}, "turns of one group"),
        ({"consumers": 2, "stages": 4, "tile_n": 128}, "shared memory"),
        ({"consumers": 3, "tile_n": 128}, "registers"),
        ({"persistent": 1, "split": 2}, "persistent blocks take"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_built(knobs: dict[str, int], reason: str) -> None:
    kernel = narrow((4, 512, 128), (4, 512, 128), (4, 512, 128))
    said = TEMPLATES[TEMPLATE].space(kernel, HOPPER).legal({**SMALL, **knobs})
    assert said is not None
    assert reason in said
