"""Attention of bfloat16 by products of pairs, against float32 sums of the same rounded operands."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pair_types import HARDWARE, runnable, without_instructions
from test_amx import ATTENTION, random_arrays, random_config
from test_attention import attention

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import hot_loop
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array
from tcomp.target.target import PRODUCT_FEATURES, TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import choices_for

NAME = "attention_pairs_cpu"


@pytest.fixture(params=["instructions", "plain code"])
def target(request: pytest.FixtureRequest) -> Target:
    """This CPU with its instructions for pairs, and without."""
    if request.param == "plain code":
        return without_instructions("bfloat16")
    found = runnable("bfloat16")
    if not found.has(PRODUCT_FEATURES[found.machine, "bfloat16"]):
        pytest.skip("this CPU has no products of bfloat16 pairs (AVX512-BF16)")
    return found


def assert_near(found: Array, expected: Array) -> None:
    """Weights are rounded to bfloat16: an error of 2^-9 of each, which largely cancel."""
    error = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    assert error.max() <= 2.0**-7 * max(1.0, np.abs(expected.astype(np.float64)).max())


def assert_matches(
    kernel: Kernel, target: Target, config: Config | None = None, arrays: list[Array] | None = None
) -> None:
    arrays = random_arrays(kernel) if arrays is None else arrays
    (found,), (expected,) = build_kernel(kernel, target, config)(arrays), evaluate(kernel.body, arrays)
    assert_near(found, expected)


def default(kernel: Kernel, target: Target) -> Config:
    _, space = choices_for(kernel, target)
    assert space.default["algorithm"] == NAME
    return space.default


@pytest.mark.parametrize("name", ATTENTION)
def test_default_matches_reference(name: str, target: Target) -> None:
    default(ATTENTION[name], target)
    assert_matches(ATTENTION[name], target)


@pytest.mark.parametrize("seed", range(4))
def test_random_configs_match_reference(seed: int, target: Target) -> None:
    kernel = random.Random(seed).choice(list(ATTENTION.values()))
    assert_matches(kernel, target, random_config(kernel, target, NAME, seed))


@pytest.mark.parametrize("extents", [(1, 1, 1, 1), (1, 2, 70, 17), (3, 9, 6, 33), (2, 33, 65, 1)])
def test_short_and_odd_extents(extents: tuple[int, int, int, int], target: Target) -> None:
    rows, length, depth, width = extents
    kernel = attention((rows, depth), (length, depth), (length, width), dtype="bfloat16")
    assert_matches(kernel, target)
    assert_matches(kernel, target, {**default(kernel, target), "tile_rows": 1})


@pytest.mark.parametrize("parallel", ["no", "batch", "tiles"])
def test_heads_are_read_and_written_where_they_lie(parallel: str) -> None:
    target = runnable("bfloat16")
    builder = GraphBuilder()
    x = builder.input("qkv", (2, 37, 9, 64), "bfloat16")
    parts = [
        builder.op("slice", x, begin=(0, 0, at, 0), end=(2, 37, at + 3, 64), strides=(1, 1, 1, 1))
        for at in (0, 3, 6)
    ]
    heads = [builder.op("transpose", part, axes=(0, 2, 1, 3)) for part in parts]
    mask = builder.input("mask", (2, 1, 1, 37))
    result = builder.op("attention", *heads, mask, scale=0.2)
    kernel = Kernel(builder.build(builder.op("relu", builder.op("transpose", result, axes=(0, 2, 1, 3)))))
    assert_matches(kernel, target, {**default(kernel, target), "parallel": parallel})


def test_masked_keys_take_no_part(target: Target) -> None:
    """A causal mask: the first row sees one key alone, whose values it returns."""
    kernel = attention((21, 16), (21, 16), (21, 16), (21, 21), dtype="bfloat16")
    arrays = random_arrays(kernel)
    arrays[3] = np.where(np.tri(21) > 0, 0.0, -np.inf).astype(arrays[3].dtype)
    assert_matches(kernel, target, arrays=arrays)
    (found,) = build_kernel(kernel, target)(arrays)
    np.testing.assert_array_equal(found[0], arrays[2][0])


def test_what_lies_behind_the_last_key_is_not_read(target: Target) -> None:
    """45 of 46 rows, the last of which is not a number."""
    builder = GraphBuilder()
    query = builder.input("query", (20, 32), "bfloat16")
    whole = builder.input("rows", (46, 32), "bfloat16")
    rows = builder.op("slice", whole, begin=(0, 0), end=(45, 32), strides=(1, 1))
    kernel = Kernel(builder.build(builder.op("attention", query, rows, rows, scale=0.3)))
    arrays = random_arrays(kernel)
    arrays[1][45] = np.nan
    default(kernel, target)
    assert_matches(kernel, target, arrays=arrays)


def test_the_inner_loop_multiplies_whole_vectors_of_pairs() -> None:
    kernel = attention((6, 197, 64), (6, 197, 64), (6, 197, 64), dtype="bfloat16")
    target = HARDWARE["bfloat16"]
    config = default(kernel, target)
    loop = hot_loop(build_kernel(kernel, target).source(), multiply="vdpbf16ps")
    products = [line for line in loop if line.startswith("vdpbf16ps")]
    sums = int(config["tile_rows"]) * int(config["score_vectors"])
    assert len(products) == 4 * sums
    assert all("zmm" in line for line in products)
    assert not any(line.startswith(("vfmadd", "vpslld", "vpandd")) for line in loop)


@pytest.mark.parametrize("tag", ["icelake-server", "x86-64-v3", "emeraldrapids", "cortex-a76"])
def test_other_targets_have_none(tag: str) -> None:
    template, _ = choices_for(ATTENTION["ragged"], TARGETS[tag])
    assert NAME not in template.algorithms


def test_float32_takes_another_template() -> None:
    template, _ = choices_for(attention((8, 16), (8, 16), (8, 16)), runnable("bfloat16"))
    assert NAME not in template.algorithms
