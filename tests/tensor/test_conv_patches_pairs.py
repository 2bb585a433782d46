"""First convolutions by products of pairs, against float32 sums of the same rounded operands."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pair_types import HARDWARE, runnable, without_instructions
from test_amx import assert_matches, random_config
from test_conv_patches import CASES, first

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import hot_loop
from tcomp.profiling import products_rate
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import choices_for

NAME = "conv_patches_pairs_cpu"
OWN = (runnable("bfloat16"), without_instructions("bfloat16"))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", OWN, ids=["own instructions", "plain code"])
def test_convolutions(name: str, target: Target) -> None:
    kernel = CASES[name]
    template, _ = choices_for(kernel, target)
    own = {knob.name: knob.default for knob in template.algorithms[NAME].space(kernel, target).knobs}
    assert_matches(kernel, target, {**own, "algorithm": NAME})


@pytest.mark.parametrize("name", ["7x7, stride 2", "3x3, stride 2", "3x3, dense", "patches"])
def test_it_is_what_is_taken_without_tuning(name: str) -> None:
    _, space = choices_for(CASES[name], HARDWARE["bfloat16"])
    assert space.default["algorithm"] == NAME


@pytest.mark.parametrize("seed", range(10))
def test_random_configs(seed: int) -> None:
    kernel, target = random.Random(seed).choice(list(CASES.values())), runnable("bfloat16")
    assert_matches(kernel, target, random_config(kernel, target, NAME, seed))


def test_what_is_not_finite_stays_where_it_is() -> None:
    """No pixel is multiplied with zeros that stand for channels beyond the last."""
    kernel, target = CASES["7x7, stride 2"], runnable("bfloat16")
    generator = np.random.default_rng(0)
    arrays: list[Array] = [
        generator.standard_normal(v.type.static_shape).astype(np.float32) for v in kernel.body.inputs
    ]
    arrays[0][0, 1, 11, 17] = np.inf
    arrays[0][0, 2, 20, 4] = np.nan
    (found,), (expected,) = build_kernel(kernel, target)(arrays), evaluate(kernel.body, arrays)
    assert 0 < np.isfinite(expected.astype(np.float32)).mean() < 1
    assert np.array_equal(np.isfinite(found.astype(np.float32)), np.isfinite(expected.astype(np.float32)))


def test_the_inner_loop_multiplies_whole_vectors_of_pairs() -> None:
    kernel, target = first(3, (64, 448), 96, (16, 16), (16, 16), (0, 0, 0, 0), block=16), HARDWARE["bfloat16"]
    _, space = choices_for(kernel, target)
    config = space.default
    sums = int(config["tile_height"]) * int(config["tile_width"]) * int(config["oc_blocks"])
    loop = hot_loop(build_kernel(kernel, target).source(), multiply="vdpbf16ps")
    products = [line for line in loop if line.startswith("vdpbf16ps")]
    assert len(products) == sums * int(config["unroll"])
    assert all("zmm" in line for line in products)


@pytest.mark.parametrize("tag", ["emeraldrapids", "icelake-server", "x86-64-v3", "neoverse-v1"])
def test_other_targets_have_none(tag: str) -> None:
    template, _ = choices_for(CASES["7x7, stride 2"], TARGETS[tag])
    assert NAME not in template.algorithms


@pytest.mark.parametrize(
    "kernel",
    [
        first(9, (12, 12), 32),
        first(3, (12, 12), 32, dilation=(1, 2)),
        first(3, (12, 12), 32, multiply_as=""),
        Kernel(CASES["7x7, stride 2"].body),
    ],
    ids=["many channels", "dilated", "float32", "weights that are no constant"],
)
def test_other_convolutions_do_without(kernel: Kernel) -> None:
    template, _ = choices_for(kernel, HARDWARE["bfloat16"])
    assert NAME not in template.algorithms


def test_its_roofline_is_that_of_pairs() -> None:
    assert products_rate(CASES["3x3, dense"], HARDWARE["bfloat16"]) == 2
