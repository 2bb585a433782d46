"""Convolutions of few plain channels by tile registers, against float32 sums of the same rounded operands."""

from __future__ import annotations

import random

import numpy as np
import pytest
from test_amx import assert_matches, random_config
from tile_targets import tile_target  # noqa: F401  (a fixture)

from tcomp.codegen.jit import build_kernel
from tcomp.profiling import products_rate
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.patches import Patches, has_patches
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import choices_for

NAME = "conv_patches_amx_cpu"


def first(
    channels: int,
    size: tuple[int, int],
    outputs: int,
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (2, 2),
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    block: int = 32,
    batch: int = 1,
    dilation: tuple[int, int] = (1, 1),
    scaled: bool = False,
    multiply_as: str = "bfloat16",
) -> Kernel:
    """A float32 convolution with a bias, relu and a bfloat16 result; `scaled` inputs are computed in it."""
    builder = GraphBuilder()
    data = builder.input("data", (batch, channels, *size))
    weight = builder.input("weight", (outputs, channels, *kernel))
    read = builder.op("tanh", data) if scaled else data
    result = builder.op(
        "conv2d", read, weight, strides=strides, padding=padding, dilation=dilation,
        out_layout=f"NCHW{block}c", multiply_as=multiply_as,
    )  # fmt: skip
    bias = builder.input("bias", (1, -(-outputs // block), 1, 1, block))
    summed = builder.op("relu", builder.op("add", result, bias))
    return Kernel(builder.build(builder.op("cast", summed, dtype="bfloat16")), frozenset({1, 2}))


CASES = {
    "7x7, stride 2": first(3, (30, 34), 64, (7, 7), padding=(3, 3, 3, 3)),
    "3x3, stride 2": first(3, (33, 47), 32),
    "3x3, dense": first(3, (9, 21), 64, strides=(1, 1)),
    "patches": first(3, (64, 48), 96, (16, 16), (16, 16), (0, 0, 0, 0)),
    "one channel": first(1, (17, 40), 32, (5, 5), (1, 1), (2, 2, 2, 2)),
    "two channels": first(2, (12, 12), 32, (3, 5), (1, 2), (1, 2, 1, 2)),
    "four channels": first(4, (19, 23), 48, (4, 4), (4, 4), (0, 0, 0, 0)),
    "six channels": first(6, (13, 15), 32, block=16),
    "eight channels": first(8, (11, 18), 40),
    "blocks of 16, ragged": first(3, (15, 31), 24, block=16),
    "uneven padding": first(3, (14, 22), 32, padding=(0, 2, 3, 1)),
    "cropped": first(3, (20, 24), 32, padding=(-1, -2, 1, -3)),
    "more padding than image": first(3, (5, 4), 32, (11, 11), (1, 1), (5, 5, 5, 5)),
    "rows apart": first(3, (24, 20), 32, strides=(1, 1), padding=(2, 1, 2, 1), dilation=(2, 1)),
    "strides leave pixels out": first(3, (16, 26), 32, (2, 3), (3, 5), (0, 0, 0, 0)),
    "one pixel": first(3, (4, 4), 32, (4, 4), padding=(0, 0, 0, 0)),
    "batch": first(3, (15, 18), 32, batch=3),
    "computed input": first(3, (17, 19), 32, scaled=True),
}


@pytest.mark.parametrize("name", CASES)
def test_convolutions(name: str, tile_target: Target) -> None:  # noqa: F811
    kernel = CASES[name]
    template, _ = choices_for(kernel, tile_target)
    own = {knob.name: knob.default for knob in template.algorithms[NAME].space(kernel, tile_target).knobs}
    assert_matches(kernel, tile_target, {**own, "algorithm": NAME})


@pytest.mark.parametrize("name", ["7x7, stride 2", "3x3, stride 2", "3x3, dense", "patches"])
def test_it_is_what_is_taken_without_tuning(name: str, tile_target: Target) -> None:  # noqa: F811
    _, space = choices_for(CASES[name], tile_target)
    assert space.default["algorithm"] == NAME


@pytest.mark.parametrize("seed", range(10))
def test_random_configs(seed: int, tile_target: Target) -> None:  # noqa: F811
    kernel = random.Random(seed).choice(list(CASES.values()))
    assert_matches(kernel, tile_target, random_config(kernel, tile_target, NAME, seed))


def test_what_is_not_finite_stays_where_it_is(tile_target: Target) -> None:  # noqa: F811
    """No pixel is multiplied with zeros that stand for taps beyond the kernel."""
    kernel = CASES["7x7, stride 2"]
    generator = np.random.default_rng(0)
    arrays: list[Array] = [
        generator.standard_normal(v.type.static_shape).astype(np.float32) for v in kernel.body.inputs
    ]
    arrays[0][0, 1, 11, 17] = np.inf
    arrays[0][0, 2, 20, 4] = np.nan
    (found,), (expected,) = build_kernel(kernel, tile_target)(arrays), evaluate(kernel.body, arrays)
    assert 0 < np.isfinite(expected.astype(np.float32)).mean() < 1
    assert np.array_equal(np.isfinite(found.astype(np.float32)), np.isfinite(expected.astype(np.float32)))


@pytest.mark.parametrize(
    "kernel",
    [
        first(9, (12, 12), 32),
        first(3, (12, 12), 32, dilation=(1, 2)),
        first(3, (12, 12), 32, (1, 1), (1, 1), (0, 0, 0, 0)),
        first(3, (12, 12), 32, multiply_as=""),
    ],
)
def test_other_convolutions_do_without(kernel: Kernel) -> None:
    template, _ = choices_for(kernel, TARGETS["emeraldrapids"])
    assert NAME not in template.algorithms


@pytest.mark.parametrize("tag", ["znver4", "icelake-server", "x86-64-v3"])
def test_other_targets_have_none(tag: str) -> None:
    template, _ = choices_for(CASES["7x7, stride 2"], TARGETS[tag])
    assert NAME not in template.algorithms


def test_weights_that_are_no_constant_are_not_rounded_here() -> None:
    kernel = CASES["7x7, stride 2"]
    template, _ = choices_for(Kernel(kernel.body), TARGETS["emeraldrapids"])
    assert NAME not in template.algorithms


def test_steps_hold_whole_kernel_rows_where_these_fit() -> None:
    def patches(name: str) -> Patches:
        anchor = CASES[name].anchor
        assert anchor is not None
        assert has_patches(anchor)
        return Patches(Convolution.of(anchor))

    assert (patches("7x7, stride 2").steps, patches("7x7, stride 2").pairs) == ((7, 1), 14)
    assert (patches("patches").steps, patches("patches").pairs) == ((16, 2), 16)
    assert (patches("more padding than image").steps, patches("more padding than image").pairs) == (
        (11, 2),
        11,
    )
    assert patches("six channels").words == 4
    assert patches("7x7, stride 2").pixel_bytes == 16


def test_one_pass_of_the_input_is_rounded_in_vectors() -> None:
    source = build_kernel(CASES["7x7, stride 2"], TARGETS["emeraldrapids"]).source()
    assert "vcvtneps2bf16" in source
    assert "vpermt2d" in source or "vpunpckldq" in source
    assert source.count("ldtilecfg") == 1


def test_its_roofline_is_that_of_tiles() -> None:
    for kernel, rate in ((CASES["3x3, dense"], 16), (first(3, (12, 12), 32, multiply_as=""), 1)):
        assert products_rate(kernel, TARGETS["emeraldrapids"]) == rate
