"""Attention whose queries see the keys up to their own: numbers, and what is not read."""

from __future__ import annotations

import random
from math import inf

import numpy as np
import pytest
from pair_types import runnable
from runnable import WIDEST
from test_amx import random_config
from test_attention import assert_matches, attention
from test_attention_pairs import assert_near

from tcomp.codegen.jit import build_kernel
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.attention.shape import Limit, Shape, Walk
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for

EXTENTS = [
    # queries, keys, size, width, keys that the first query sees
    (37, 37, 20, 23, 1),
    (64, 64, 16, 32, 1),
    (5, 70, 16, 7, 66),
    (70, 5, 16, 7, 1),
    (33, 100, 8, 16, 17),
    (33, 20, 8, 16, 40),
    (1, 50, 16, 16, 1),
    (129, 129, 4, 5, 1),
]


def arrays_of(kernel: Kernel) -> list[Array]:
    rng = np.random.default_rng(0)
    types = [v.type for v in kernel.body.inputs]
    return [rng.standard_normal(t.static_shape).astype(numpy_dtype(t.dtype)) for t in types]


def single(rows: int, keys: int, size: int, width: int, causal: int, dtype: str = "float32") -> Kernel:
    return attention((2, rows, size), (2, keys, size), (2, keys, width), dtype=dtype, causal=causal)


@pytest.mark.parametrize("extents", EXTENTS)
def test_reference_is_a_mask(extents: tuple[int, int, int, int, int]) -> None:
    rows, keys, _, _, causal = extents
    kernel = single(*extents)
    arrays = arrays_of(kernel)
    mask = np.where(np.tri(rows, keys, causal - 1) > 0, 0, -inf).astype(np.float32)
    masked = attention(*(a.shape for a in arrays), mask.shape)
    (expected,) = evaluate(masked.body, [*arrays, mask])
    (found,) = evaluate(kernel.body, arrays)
    np.testing.assert_array_equal(found, expected)
    pairs = int((np.tri(rows, keys, causal - 1) > 0).sum())
    assert kernel.flops * rows * keys == masked.flops * pairs


@pytest.mark.parametrize("extents", EXTENTS)
@pytest.mark.parametrize("target", [WIDEST.name, "x86-64-v3"])
def test_default_matches_reference(extents: tuple[int, int, int, int, int], target: str) -> None:
    assert_matches(single(*extents), target=target)


@pytest.mark.parametrize("seed", range(6))
def test_random_configs_match_reference(seed: int) -> None:
    rng = random.Random(seed)
    kernel = single(*rng.choice(EXTENTS))
    assert_matches(kernel, template_for(kernel, WIDEST).space(kernel, WIDEST).random(rng))


def test_beside_a_mask_and_by_groups_of_heads() -> None:
    shapes = ((2, 4, 21, 16), (2, 1, 37, 16), (2, 1, 37, 16))
    assert_matches(attention(*shapes, (2, 1, 1, 37), causal=17))
    assert_matches(attention(*shapes, (21, 37), causal=3, dtype="float64"))


@pytest.mark.parametrize("parallel", ["no", "batch", "tiles"])
def test_shared_among_threads(parallel: str) -> None:
    kernel = attention((2, 3, 70, 16), (2, 3, 70, 16), (2, 3, 70, 16), causal=1)
    default = template_for(kernel, WIDEST).space(kernel, WIDEST).default
    assert_matches(kernel, {**default, "parallel": parallel})


def assert_pairs_match(kernel: Kernel, target: Target, config: Config | None = None) -> None:
    arrays = arrays_of(kernel)
    (found,), (expected,) = build_kernel(kernel, target, config)(arrays), evaluate(kernel.body, arrays)
    assert_near(found, expected)


@pytest.mark.parametrize("extents", EXTENTS)
def test_pairs_match_reference(extents: tuple[int, int, int, int, int]) -> None:
    target, kernel = runnable("bfloat16"), single(*extents, dtype="bfloat16")
    assert_pairs_match(kernel, target)
    assert_pairs_match(kernel, target, random_config(kernel, target, "attention_pairs_cpu", seed=1))


@pytest.mark.parametrize("name", ["attention_cpu", "attention_pairs_cpu"])
def test_what_no_query_of_a_tile_sees_is_not_read(name: str) -> None:
    """Keys and values far beyond a tile's queries are not numbers, and do no harm."""
    dtype, target = ("float32", WIDEST) if name == "attention_cpu" else ("bfloat16", runnable("bfloat16"))
    kernel = attention((80, 32), (160, 32), (160, 32), dtype=dtype, causal=1)
    arrays = arrays_of(kernel)
    for array in arrays[1:]:
        array[80:] = np.nan  # Seen by no query.
    (found,) = build_kernel(kernel, target)(arrays)
    assert np.isfinite(found.astype(np.float32)).all()
    for array in arrays[1:]:
        array[64:] = np.nan
    (found,) = build_kernel(kernel, target)(arrays)
    assert np.isfinite(found[:32].astype(np.float32)).all()
    assert np.isnan(found[64:].astype(np.float32)).all()


def shape_of(kernel: Kernel) -> Shape:
    assert kernel.anchor is not None
    return Shape.of(kernel.anchor)


def test_no_more_is_computed_than_is_seen() -> None:
    whole, half = shape_of(single(64, 64, 16, 16, 0)), shape_of(single(64, 64, 16, 16, 1))
    assert (half.length, whole.limit.causal, half.limit.causal) == (64, 0, 1)
    assert Walk.of(whole.limit, 8, 16) == Walk(4, 4)
    assert Walk.of(half.limit, 8, 16) == Walk(2.5, 4)
    assert shape_of(single(10, 64, 16, 16, 3)).length == 12
    assert shape_of(single(10, 64, 16, 16, 64)).limit == Limit(10, 64, 0)
