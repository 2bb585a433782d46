"""Winograd convolution: the transforms, their errors, and the template against the operator's reference."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from pair_types import HARDWARE, runnable
from runnable import RUNNABLE
from test_conv2d import assert_matches, conv2d
from test_conv_pairs import assert_matches as assert_pairs_match
from test_conv_pairs import conv as pair_conv

from tcomp.codegen.jit import build_kernel
from tcomp.errors import ScheduleError
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Alternatives, KnobValue
from tcomp.tensor.selection import schedule, template_for
from tcomp.tensor.winograd.choice import pixel_tiles
from tcomp.tensor.winograd.filtering import ERRORS, OUTPUTS, Scheme, winograd

NAME = "conv_winograd_cpu"
AXES = [(outputs, stride) for stride, known in OUTPUTS.items() for outputs in known]
TILES = [(pixels, stride) for stride in OUTPUTS for pixels in pixel_tiles((stride, stride))]
ALGORITHMS = [(name, TARGETS[name].lanes()) for name in RUNNABLE]


def layouts(block: int) -> dict[str, object]:
    return {"data_layout": f"NCHW{block}c", "out_layout": f"NCHW{block}c"}


def space_of(kernel: Kernel, target: Target) -> Alternatives:
    space = template_for(kernel, target).space(kernel, target)
    assert isinstance(space, Alternatives)
    return space


def config_of(kernel: Kernel, target: Target, **knobs: KnobValue) -> dict[str, KnobValue]:
    """A Winograd config with the given knobs, the others being the default's."""
    return {"algorithm": NAME, **space_of(kernel, target).spaces[NAME].default, **knobs}


def small_tiles(kernel: Kernel, target: Target, pixels: tuple[int, int]) -> dict[str, KnobValue]:
    """A config of the smallest group and register tile."""
    space = space_of(kernel, target).spaces[NAME]
    group, rows = (next(k.values for k in space.knobs if k.name == name) for name in ("group", "rows"))
    height, width = pixels
    columns = 0 if width == height else width
    tile = config_of(kernel, target, outputs=height, columns=columns, rows=rows[0], oc_blocks=1)
    own = {name: value for name, value in tile.items() if name != "algorithm"}
    return {**tile, "group": next(g for g in group if space.legal({**own, "group": g}) is None)}


@pytest.mark.parametrize(("outputs", "stride"), AXES)
def test_transforms_compute_a_convolution(outputs: int, stride: int) -> None:
    scheme, generator = winograd(outputs, stride), np.random.default_rng(0)
    x, kernel = generator.standard_normal(scheme.size), generator.standard_normal(3)
    products = (scheme.weight @ kernel) * (scheme.input @ x)
    np.testing.assert_allclose(scheme.output @ products, np.correlate(x, kernel, "valid")[::stride])


@pytest.mark.parametrize(("outputs", "stride"), AXES)
def test_shared_terms_compute_the_same_as_the_matrices(outputs: int, stride: int) -> None:
    scheme = winograd(outputs, stride)
    x = list(np.random.default_rng(1).standard_normal(scheme.size))
    np.testing.assert_allclose(scheme.transform_input(x, lambda v: v), scheme.input @ x, rtol=1e-6)
    np.testing.assert_allclose(scheme.transform_output(x, lambda v: v), scheme.output @ x, rtol=1e-6)


class Counted:
    """A value that counts the additions made with it; a multiplication is fused into one of them."""

    def __init__(self, count: list[int]) -> None:
        self.count = count

    def __add__(self, other: object) -> Counted:
        self.count[0] += 1
        return self

    __sub__ = __add__

    def __mul__(self, factor: float) -> Counted:
        return self


@pytest.mark.parametrize(("outputs", "inward", "outward"), [(2, 4, 4), (4, 12, 12)])
def test_transforms_take_few_additions(outputs: int, inward: int, outward: int) -> None:
    for transform, expected in (("transform_input", inward), ("transform_output", outward)):
        count = [0]
        x = [Counted(count)] * winograd(outputs).size
        getattr(winograd(outputs), transform)(x, lambda v: v)
        assert count[0] <= expected, transform


def float32_error(pixels: tuple[int, int], stride: int, channels: int, factors: str = "float32") -> float:
    """Largest error of a convolution in float32 relative to the largest output, by numpy.

    Data, weights and what is multiplied are rounded to `factors`.
    """
    scheme, generator = Scheme.of(pixels, (stride, stride)), np.random.default_rng(channels)
    down, across = scheme.down, scheme.across
    shape = (32, channels, down.size, across.size)

    def rounded(values: Array) -> Array:
        return values.astype(factors).astype(np.float32)

    x = rounded(np.maximum(generator.standard_normal(shape), 0))
    weights = rounded(generator.standard_normal((16, channels, 3, 3)))
    patches = rounded(down.input.astype(np.float32) @ x @ across.input.astype(np.float32).T)
    transformed = rounded(scheme.transform_weights(weights.reshape(-1, 9).T))
    transformed = transformed.reshape(down.size, across.size, *weights.shape[:2])
    products = np.einsum("tcij,ijoc->toij", patches, transformed, optimize=False)
    found = down.output.astype(np.float32) @ products @ across.output.astype(np.float32).T
    expected: Array = np.zeros(found.shape)
    for i in range(3):
        for j in range(3):
            rows, columns = (slice(k, k + stride * n, stride) for k, n in zip((i, j), pixels, strict=True))
            window = x[:, :, rows, columns].astype(np.float64)
            expected += np.einsum("tcij,oc->toij", window, weights[:, :, i, j].astype(np.float64))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("channels", [64, 512])
@pytest.mark.parametrize(("pixels", "stride"), TILES)
def test_errors_are_within_what_is_stated(pixels: tuple[int, int], stride: int, channels: int) -> None:
    assert float32_error(pixels, stride, channels) <= ERRORS[pixels[0]]


@pytest.mark.parametrize("channels", [64, 512])
@pytest.mark.parametrize(("outputs", "error"), [(2, 4e-4), (4, 2e-3)])
def test_errors_of_factors_in_half_precision(outputs: int, error: float, channels: int) -> None:
    found = float32_error((outputs, outputs), 1, channels, "float16")
    assert 0.8 * error <= found <= 1.1 * error


@pytest.mark.parametrize(("name", "block"), ALGORITHMS)
@pytest.mark.parametrize(("pixels", "stride"), TILES)
@pytest.mark.parametrize(
    ("size", "channels", "attrs"),
    [
        ((12, 24), (32, 32), {"padding": (1, 1, 1, 1)}),
        ((9, 7), (40, 20), {"padding": (1, 1, 1, 1)}),
        ((6, 5), (24, 16), {"padding": (0, 2, 1, 0)}),
        ((3, 4), (16, 5), {}),
    ],
    ids=["whole", "ragged", "asymmetric", "tiny"],
)
def test_matches_reference(
    name: str,
    block: int,
    pixels: tuple[int, int],
    stride: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    attrs: dict[str, object],
) -> None:
    """With bias, residual and relu, and two images."""
    target, (outs, ins) = TARGETS[name], channels
    data = (2, -(-ins // block), *size, block)
    strides = (stride, stride)
    kernel = conv2d(data, (outs, ins, 3, 3), epilogue=True, strides=strides, **layouts(block), **attrs)
    config = small_tiles(kernel, target, pixels)
    assert_matches(kernel, target, {**config, "oc_blocks": min(2, -(-outs // block))})


@pytest.mark.parametrize(("name", "block"), ALGORITHMS)
def test_random_configs_match(name: str, block: int) -> None:
    target = TARGETS[name]
    kernel = conv2d(
        (2, 2, 15, 13, block), (3 * block, 2 * block, 3, 3), epilogue=True, padding=(1,) * 4, **layouts(block)
    )
    space, generator = space_of(kernel, target), random.Random(3)
    for _ in range(4):
        own = space.spaces[NAME].random(generator)
        assert_matches(kernel, target, {"algorithm": NAME, **own})


@pytest.mark.parametrize("passes", [2, 4])
@pytest.mark.parametrize(("name", "block"), ALGORITHMS)
def test_passes_over_parts_of_the_channels_match(name: str, block: int, passes: int) -> None:
    """Register tiles with a rest, and chunks of one step where a block is all channels of a chunk."""
    target = TARGETS[name]
    kernel = conv2d(
        (1, 4, 10, 10, block), (3 * block, 4 * block, 3, 3), epilogue=True, padding=(1,) * 4, **layouts(block)
    )
    config = config_of(kernel, target, outputs=2, columns=0, group=25, rows=4, oc_blocks=2, passes=passes)
    assert_matches(kernel, target, config)


def test_a_panel_that_stays_in_the_nearest_cache_is_walked_once() -> None:
    target = TARGETS["x86-64-v4"]
    few, many = (
        conv2d((1, n // 16, 14, 14, 16), (n, n, 3, 3), padding=(1,) * 4, **layouts(16)) for n in (64, 512)
    )
    assert space_of(few, target).spaces[NAME].default.get("passes", 1) == 1
    assert space_of(many, target).spaces[NAME].default.get("passes", 1) > 1


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4"])
def test_spilled_vectors_do_not_straddle_cache_lines(name: str) -> None:
    """Transforms of 6x6 values spill, and each spill at an unaligned place costs as much as two."""
    target = TARGETS[name]
    block, width = target.lanes(), {"x86-64-v3": 32, "x86-64-v4": 64}[name]
    kernel = conv2d((1, 2, 12, 12, block), (32, 2 * block, 3, 3), padding=(1,) * 4, **layouts(block))
    config = config_of(kernel, target, outputs=4, columns=0, group=9, rows=4, oc_blocks=1)
    lines = build_kernel(kernel, target, config).source().splitlines()
    places = [re.search(r"(\d*)\(%rsp\)", line) for line in lines if re.search("%[yz]mm", line)]
    assert [p for p in places if p], "nothing is spilled: the test is void"
    assert all(int(p[1] or 0) % width == 0 for p in places if p)
    assert any(re.search(r"andq\s+\$-\d+, %rsp", line) for line in lines)


def blocked_3x3() -> Kernel:
    return conv2d((1, 4, 28, 28, 16), (64, 64, 3, 3), padding=(1,) * 4, **layouts(16))


def test_the_default_is_the_better_algorithm() -> None:
    target = TARGETS["x86-64-v4"]
    assert space_of(blocked_3x3(), target).default["algorithm"] == NAME
    few_pixels = conv2d((1, 32, 3, 3, 16), (512, 512, 3, 3), padding=(1,) * 4, **layouts(16))
    assert "algorithm" not in space_of(few_pixels, target).default


def test_configs_without_the_knob_are_of_the_first_template() -> None:
    target = TARGETS["x86-64-v4"]
    template = template_for(blocked_3x3(), target)
    space = space_of(blocked_3x3(), target)
    direct = space.spaces["conv_direct_cpu"].default
    space.check(direct)
    assert template.id_of(direct) == template.id == template.algorithms["conv_direct_cpu"].id
    assert template.id_of(space.default) == template.algorithms[NAME].id != template.id


def test_other_algorithms_and_foreign_knobs_are_refused() -> None:
    space = space_of(blocked_3x3(), TARGETS["x86-64-v4"])
    direct = space.spaces["conv_direct_cpu"].default
    assert space.legal({**direct, "algorithm": "fft"}) == (
        "knob `algorithm` is fft; allowed: conv_direct_cpu, conv_winograd_cpu"
    )
    assert space.legal({**direct, "algorithm": NAME}) is not None
    with pytest.raises(ScheduleError, match=r"conv_winograd_cpu@\d+: knob `\w+` is (unknown|missing)"):
        schedule(blocked_3x3(), TARGETS["x86-64-v4"], {**direct, "algorithm": NAME})


def test_the_union_answers_as_a_space() -> None:
    space = space_of(blocked_3x3(), TARGETS["x86-64-v4"])
    generator = random.Random(0)
    configs = [space.random(generator) for _ in range(40)]
    assert {"algorithm" in config for config in configs} == {True, False}
    assert len({len(space.encode(config)) for config in configs}) == 1
    assert all(space.legal(near) is None for near in space.neighbours(space.default))
    assert any("algorithm" not in near for near in space.neighbours(space.default))
    assert space.cardinality == sum(own.cardinality for own in space.spaces.values())


@pytest.mark.parametrize("pixels", pixel_tiles())
@pytest.mark.parametrize(("channels", "size"), [(24, 9), (64, 14)])
def test_operands_of_bfloat16_are_widened(channels: int, size: int, pixels: tuple[int, int]) -> None:
    kernel, target = pair_conv(channels, size, 32)["bfloat16"], runnable("bfloat16")
    assert_pairs_match(kernel, target, small_tiles(kernel, target, pixels))


@pytest.mark.parametrize(
    ("channels", "size", "algorithm"), [(64, 56, NAME), (128, 28, NAME), (512, 7, None), (16, 7, None)]
)
def test_fewer_float32_products_or_faster_ones_of_bfloat16(
    channels: int, size: int, algorithm: str | None
) -> None:
    """Late layers are bound by weights, which are 16/9 or 4 times as many and twice as wide."""
    kernel = pair_conv(channels, size, channels)["bfloat16"]
    assert space_of(kernel, TARGETS["znver4"]).default.get("algorithm") == algorithm


def test_kernels_that_only_direct_convolution_serves() -> None:
    target = TARGETS["x86-64-v4"]
    for attrs in ({"strides": (3, 3)}, {"dilation": (2, 2), "padding": (2,) * 4}):
        kernel = conv2d((1, 2, 9, 9, 16), (32, 32, 3, 3), **layouts(16), **attrs)
        assert not template_for(kernel, target).algorithms
    for name in ("float16", "bfloat16"):
        assert not template_for(pair_conv(64, 14, 64)[name], HARDWARE["float16"]).algorithms
    for options in ({"constant": False}, {"dtype": "float16"}):
        kernel = conv2d((1, 2, 9, 9, 16), (32, 32, 3, 3), **options, **layouts(16))
        assert not template_for(kernel, target).algorithms
