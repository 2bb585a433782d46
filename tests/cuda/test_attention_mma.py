"""Attention on tensor cores computes what the reference does, on an emulated GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attention_runs import assert_matches, built
from test_attention_cuda import arrays_of, attention

from tcomp import api
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Value
from tcomp.runtime import load
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.attention.mma_operands import MmaAttentionOperands
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import TEMPLATES

SMALL = {"tile_m": 32, "tile_n": 32, "warps": 2, "stages": 2}
TEMPLATE = "attention_mma_cuda"


def narrow(*shapes: tuple[int, ...], dtype: str = "float16", scale: float = 0.3, after: str = "") -> Kernel:
    return attention(*shapes, dtype=dtype, scale=scale, after=after)


def merged(dtype: str = "float16", size: int = 16) -> Kernel:
    """Three heads' queries, keys and values in one tensor `[batch, row, 9, size]`, as of one projection."""
    builder = GraphBuilder()
    rows = builder.input("rows", (2, 40, 9, size), dtype)

    def heads(first: int) -> Value:
        part = builder.op(
            "slice", rows, begin=(0, 0, first, 0), end=(2, 40, first + 3, size), strides=(1, 1, 1, 1)
        )
        return builder.op("transpose", part, axes=(0, 2, 1, 3))

    mask = builder.input("mask", (2, 1, 1, 40), "float32")
    result = builder.op("attention", *(heads(first) for first in (0, 3, 6)), mask, scale=0.25)
    return Kernel(builder.build(builder.op("transpose", result, axes=(0, 2, 1, 3))))


CASES: dict[str, tuple[Kernel, dict[str, int]]] = {
    "whole tiles": (narrow((2, 32, 64), (2, 64, 64), (2, 64, 64)), {}),
    "bfloat16": (narrow((2, 32, 64), (2, 64, 64), (2, 64, 64), dtype="bfloat16"), {}),
    "ragged": (narrow((37, 24), (45, 24), (45, 40)), {}),
    "heads of 80, three stages": (narrow((2, 40, 80), (2, 170, 80), (2, 170, 80)), {"stages": 3}),
    "32 rows a warp": (
        narrow((1, 70, 64), (1, 100, 64), (1, 100, 64)), {"tile_m": 64, "tile_n": 64},
    ),
    "queries in shared memory": (
        narrow((1, 70, 128), (1, 100, 128), (1, 100, 128)), {"tile_m": 64, "stages": 3},
    ),
    "more stages than steps": (narrow((1, 10, 32), (1, 20, 32), (1, 20, 32)), {"stages": 4}),
    "grouped heads": (narrow((2, 4, 9, 16), (2, 1, 33, 16), (2, 1, 33, 32), (2, 1, 1, 33)), {}),
    "two groups of heads": (narrow((2, 2, 3, 7, 16), (2, 2, 1, 40, 16), (2, 1, 40, 24)), {}),
    "a mask for each row and head": (
        narrow((2, 3, 40, 16), (2, 3, 50, 16), (2, 3, 50, 16), (3, 40, 50), dtype="bfloat16"), {},
    ),
    "merged projection": (merged(), {}),
    "rows that are not whole chunks": (narrow((2, 20, 20), (2, 40, 20), (2, 40, 12)), {}),
    "odd head": (narrow((1, 20, 16), (1, 40, 16), (1, 40, 7)), {}),
    "one query": (narrow((3, 1, 64), (3, 70, 64), (3, 70, 64)), {"tile_m": 16, "warps": 1}),
    "negative scale": (narrow((1, 20, 16), (1, 40, 16), (1, 40, 16), scale=-0.4), {}),
    "transposed result": (narrow((3, 12, 16), (3, 20, 16), (3, 20, 32), after="heads last"), {}),
    "eight warps": (narrow((1, 256, 16), (1, 64, 16), (1, 64, 16)), {"tile_m": 256, "warps": 8}),
}  # fmt: skip
FEW = (
    "bfloat16",
    "ragged",
    "32 rows a warp",
    "queries in shared memory",
    "grouped heads",
    "merged projection",
)
"""Those that are always tested: g++ takes long for each."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in CASES]
)
def test_numbers(name: str, gpu: Target) -> None:
    kernel, knobs = CASES[name]
    assert_matches(TEMPLATE, kernel, {**SMALL, **knobs}, gpu)


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min])
def test_masks_that_hide_whole_tiles(hidden: float, gpu: Target) -> None:
    """A causal mask, and a first tile of keys that no row sees."""
    builder = GraphBuilder()
    operands = [builder.input(n, (1, rows, 16), "float16") for n, rows in (("q", 48), ("k", 80), ("v", 80))]
    mask = builder.input("mask", (48, 80))
    kernel = Kernel(builder.build(builder.op("attention", *operands, mask, scale=0.3)))
    arrays = arrays_of(kernel)
    rows, keys = np.arange(48)[:, None], np.arange(80)[None]
    arrays[3] = np.where((keys >= 33) & (keys <= rows + 33), 0, hidden).astype(np.float32)
    assert_matches(TEMPLATE, kernel, SMALL, gpu, arrays)


def test_rows_that_see_nothing_are_as_in_the_reference(gpu: Target) -> None:
    """Masks of the lowest number hide all keys of a row alike."""
    kernel = narrow((1, 20, 16), (1, 40, 16), (1, 40, 16), (20, 40), dtype="bfloat16")
    arrays = arrays_of(kernel)
    arrays[3] = np.zeros((20, 40), arrays[3].dtype)
    arrays[3][3:5] = np.finfo(np.float32).min / 2
    assert_matches(TEMPLATE, kernel, SMALL, gpu, arrays)


def test_what_is_not_a_number_stays_in_its_row(gpu: Target) -> None:
    kernel = narrow((1, 20, 16), (1, 40, 16), (1, 40, 16))
    arrays = arrays_of(kernel)
    arrays[0][0, 3, 5] = np.nan
    (found,) = built(TEMPLATE, kernel, SMALL, gpu)(arrays)
    assert np.isnan(found[0, 3]).all()
    assert np.isfinite(np.delete(found, 3, axis=1)).all()


def test_fast_models_use_it(gpu: Target, tmp_path: Path) -> None:
    """One product makes the queries, keys and values of all heads, which are read where it left them."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("layer")
    first, last = (rng.standard_normal((32, n), np.float32) / 6 for n in (96, 32))
    x, mask = g.input("x", (1, 24, 32)), g.input("mask", (1, 1, 1, 24))
    rows = g.op("reshape", g.op("matmul", g.op("relu", x), g.constant(first)), shape=(1, 24, 6, 16))
    parts = [
        g.op("slice", rows, begin=(0, 0, n, 0), end=(1, 24, n + 2, 16), strides=(1,) * 4) for n in (0, 2, 4)
    ]
    heads = [g.op("transpose", part, axes=(0, 2, 1, 3)) for part in parts]
    y = g.op("transpose", g.op("attention", *heads, mask, scale=0.25), axes=(0, 2, 1, 3))
    graph = g.build(g.op("matmul", g.op("reshape", y, shape=(1, 24, 32)), g.constant(last)))
    done = api.compile(graph, tmp_path / "layer.so", gpu, precision="fast")
    (kernel,) = (k for k in done.report.program.kernels if "attention" in k.kernel.key)
    assert kernel.kernel.key.startswith("(f16[1,24,6,16], f32[1,1,1,24])")
    assert MmaAttentionOperands(kernel.kernel).moved == ()
    template = template_for(kernel.kernel, gpu)
    assert template.id_of(template.space(kernel.kernel, gpu).default).startswith(TEMPLATE)
    arrays = [
        rng.standard_normal((1, 24, 32), np.float32),
        np.where(np.arange(24) < 19, 0, -np.inf).astype(np.float32).reshape(1, 1, 1, 24),
    ]
    (found,), (expected,) = load(tmp_path / "layer.so")(*arrays), evaluate(graph, arrays)
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())


def test_which_kernels_it_takes() -> None:
    template, half = TEMPLATES[TEMPLATE], narrow((2, 8, 16), (2, 8, 16), (2, 8, 16))
    assert template.accepts(half, TARGETS["cuda:sm_80"])
    assert not template.accepts(half, TARGETS["cuda:sm_75"])
    assert not template.accepts(attention((2, 8, 16), (2, 8, 16), (2, 8, 16)), TARGETS["cuda:sm_80"])
    wide = narrow((2, 8, 1024), (2, 8, 1024), (2, 8, 1024))
    assert not template.accepts(wide, TARGETS["cuda:sm_80"])


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90"])
def test_it_is_the_default_where_it_can_be(arch: str) -> None:
    for heads, length, size in ((12, 128, 64), (16, 4096, 128), (8, 1024, 80)):
        kernel = narrow((heads, length, size), (heads, length, size), (heads, length, size))
        template = template_for(kernel, TARGETS[f"cuda:{arch}"])
        default = template.space(kernel, TARGETS[f"cuda:{arch}"]).default
        assert template.id_of(default).startswith(TEMPLATE)


@pytest.mark.parametrize("size", [160, 256])
def test_heads_too_wide_for_plain_instructions(size: int) -> None:
    kernel, target = narrow((4, 64, size), (4, 64, size), (4, 64, size)), TARGETS["cuda:sm_80"]
    assert not TEMPLATES["attention_cuda"].accepts(kernel, target)
    assert template_for(kernel, target).name == TEMPLATE


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"warps": 4}, "do not share 32 rows"),
        ({"tile_m": 128, "warps": 8, "tile_n": 128, "stages": 4}, "shared memory"),
        ({"tile_m": 64, "tile_n": 128}, "registers"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_built(knobs: dict[str, int], reason: str) -> None:
    kernel, target = narrow((4, 512, 128), (4, 512, 128), (4, 512, 128)), TARGETS["cuda:sm_80"]
    space = TEMPLATES[TEMPLATE].space(kernel, target)
    said = space.legal({**SMALL, **knobs})
    assert said is not None
    assert reason in said
