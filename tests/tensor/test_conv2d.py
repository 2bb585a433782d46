"""The direct convolution template: numbers against the operator's own reference, register use, spaces."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Value
from tcomp.relay.types import Array, TensorType
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import TEMPLATES


def conv2d(
    data: tuple[int, ...],
    weight: tuple[int, int, int, int],
    epilogue: bool = False,
    constant: bool = True,
    dtype: str = "float32",
    **attrs: object,
) -> Kernel:
    """A conv2d kernel; with `epilogue`, followed by a bias, a residual of the output's shape, and relu."""
    builder = GraphBuilder()
    operands = [builder.input("data", data, dtype), builder.input("weight", weight, dtype)]
    result: Value = builder.op("conv2d", *operands, **attrs)
    if epilogue:
        shape = result.type.static_shape
        bias = builder.input("bias", (1, shape[1], 1, 1, *shape[4:]), dtype)
        residual = builder.input("residual", shape, dtype)
        result = builder.op("relu", builder.op("add", builder.op("add", result, bias), residual))
    return Kernel(builder.build(result), frozenset({1, 2}) if constant else frozenset())


def random_arrays(kernel: Kernel, seed: int = 0) -> list[Array]:
    """Inputs whose padding lanes are zero as a blocked tensor's are."""
    generator = np.random.default_rng(seed)
    return [_random(generator, value.type) for value in kernel.body.inputs]


def _random(generator: np.random.Generator, type_: TensorType) -> Array:
    if type_.dtype.startswith(("int", "uint")):
        return generator.integers(-4 if type_.dtype.startswith("int") else 0, 5, type_.static_shape).astype(
            type_.dtype
        )
    return generator.standard_normal(type_.static_shape).astype(type_.dtype)


def assert_matches(kernel: Kernel, target: Target, config: dict[str, object] | None = None) -> None:
    arrays = random_arrays(kernel)
    (found,) = build_kernel(kernel, target, config)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    tolerance = {"float16": 5e-3, "bfloat16": 4e-2}.get(kernel.body.outputs[0].dtype, 1e-5)
    scale = np.abs(expected.astype(np.float64)).max()
    assert np.abs(found.astype(np.float64) - expected.astype(np.float64)).max() <= tolerance * scale


@pytest.fixture(scope="module")
def target() -> Target:
    return TARGETS["x86-64-v3"]


BLOCKED = {"data_layout": "NCHW8c", "out_layout": "NCHW8c"}


@pytest.mark.parametrize(
    ("data", "weight", "attrs"),
    [
        ((1, 2, 7, 7, 8), (16, 16, 3, 3), {"padding": (1, 1, 1, 1)}),
        ((2, 2, 6, 8, 8), (24, 16, 1, 1), {}),
        ((1, 2, 8, 8, 8), (16, 16, 1, 1), {"strides": (2, 2)}),
        ((1, 2, 8, 8, 8), (16, 16, 3, 3), {"strides": (2, 2), "padding": (1, 1, 1, 1)}),
        ((1, 2, 9, 8, 8), (20, 12, 3, 2), {"padding": (0, 1, 2, 0), "dilation": (2, 1)}),
        ((1, 1, 6, 6, 8), (8, 5, 3, 3), {"padding": (1, 1, 1, 1)}),
    ],
    ids=["3x3", "1x1", "1x1-strided", "3x3-strided", "ragged-dilated", "few-channels"],
)
def test_matches_reference(
    target: Target, data: tuple[int, ...], weight: tuple[int, int, int, int], attrs: dict[str, object]
) -> None:
    assert_matches(conv2d(data, weight, epilogue=True, **BLOCKED, **attrs), target)


@pytest.mark.parametrize("size", [(6, 6), (3, 14)])
def test_pointwise_tiles_do_not_wrap_into_the_next_row(target: Target, size: tuple[int, int]) -> None:
    """Widths of a tile that divide a row, all pixels, or neither."""
    kernel = conv2d((1, 2, *size, 8), (16, 16, 1, 1), epilogue=True, **BLOCKED)
    widths = next(
        k for k in template_for(kernel, target).space(kernel, target).knobs if k.name == "tile_width"
    )
    for width in widths.values[2::4]:
        config = {**template_for(kernel, target).space(kernel, target).default, "tile_width": width}
        assert_matches(kernel, target, {**config, "oc_blocks": 1})


def test_first_layer_reads_plain_input(target: Target) -> None:
    attrs = {"strides": (2, 2), "padding": (3, 3, 3, 3), "out_layout": "NCHW8c"}
    assert_matches(conv2d((1, 3, 20, 20), (16, 3, 7, 7), epilogue=True, **attrs), target)


def test_weights_may_be_computed_at_run_time(target: Target) -> None:
    kernel = conv2d((1, 2, 6, 6, 8), (20, 12, 3, 3), constant=False, padding=(1, 1, 1, 1), **BLOCKED)
    assert_matches(kernel, target)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int32", "int8"])
def test_other_dtypes(target: Target, dtype: str) -> None:
    kernel = conv2d((1, 2, 6, 6, 8), (16, 16, 3, 3), dtype=dtype, padding=(1, 1, 1, 1), **BLOCKED)
    assert_matches(kernel, target)


def test_random_configs_match(target: Target) -> None:
    kernel = conv2d((1, 2, 8, 8, 8), (32, 16, 3, 3), epilogue=True, padding=(1, 1, 1, 1), **BLOCKED)
    space = template_for(kernel, target).space(kernel, target)
    generator = random.Random(1)
    for _ in range(4):
        assert_matches(kernel, target, space.random(generator))


@pytest.mark.parametrize(
    ("kernel_size", "height", "width"), [(1, 1, 9), (3, 1, 4), (3, 2, 7)], ids=["pixels", "row", "rows"]
)
def test_last_tile_is_smaller(target: Target, kernel_size: int, height: int, width: int) -> None:
    """Tiles that divide neither a row, nor all rows, nor all pixels."""
    padding = (kernel_size // 2,) * 4
    kernel = conv2d(
        (2, 8, 5, 7, 8), (24, 64, kernel_size, kernel_size), epilogue=True, padding=padding, **BLOCKED
    )
    space = TEMPLATES["conv_direct_cpu"].space(kernel, target)
    config = {**space.default, "tile_height": height, "tile_width": width, "oc_blocks": 1}
    assert_matches(kernel, target, config)


@pytest.mark.parametrize("sums", [2, 4, 8])
@pytest.mark.parametrize("size", [1, 3], ids=["pixel", "pixels"])
def test_partial_sums(target: Target, size: int, sums: int) -> None:
    kernel = conv2d(
        (1, 4, size, size, 8), (16, 32, size, size), epilogue=True, padding=(size // 2,) * 4, **BLOCKED
    )
    space = TEMPLATES["conv_direct_cpu"].space(kernel, target)
    tile = {"tile_height": 1, "tile_width": 1, "oc_blocks": 1}
    assert_matches(kernel, target, {**space.default, **tile, "unroll": 8, "partial_sums": sums})


def test_outputs_of_one_pixel_have_partial_sums(target: Target) -> None:
    few, many = (conv2d((1, 12, 1, 1, 8), (outputs, 96, 1, 1), **BLOCKED) for outputs in (8, 96))
    defaults = [template_for(k, target).space(k, target).default for k in (few, many)]
    assert [d.get("partial_sums") for d in defaults] == [8, None]


@pytest.mark.parametrize("distance", [0, 4, 64])
def test_prefetch(target: Target, distance: int) -> None:
    """Any distance gives the same numbers, 0 no instruction."""
    kernel = conv2d((1, 4, 6, 6, 8), (16, 32, 3, 3), epilogue=True, padding=(1,) * 4, **BLOCKED)
    space = TEMPLATES["conv_direct_cpu"].space(kernel, target)
    config = {**space.default, "prefetch": distance}
    assert_matches(kernel, target, config)
    assert ("prefetcht0" in build_kernel(kernel, target, config).source("asm")) == (distance > 0)


@pytest.mark.parametrize("passes", [2, 4])
def test_passes(target: Target, passes: int) -> None:
    """Sums that wait in memory between parts of the reduction have the same value; some tiles overlap."""
    kernel = conv2d((2, 4, 7, 7, 8), (48, 32, 3, 3), epilogue=True, padding=(1,) * 4, **BLOCKED)
    space = TEMPLATES["conv_direct_cpu"].space(kernel, target)
    tile = {"tile_height": 1, "tile_width": 5, "oc_blocks": 1, "order": "weights", "partial_sums": 1}
    config = {**space.default, **tile, "passes": passes}
    assert_matches(kernel, target, config)
    reason = space.legal({**config, "order": "pixels"})
    assert reason is not None
    assert "order" in reason


@pytest.mark.parametrize("passes", [1, 4])
def test_weights_of_the_next_pass_are_fetched(target: Target, passes: int) -> None:
    """Into the second-level cache, where they are too many for the first."""
    kernel = conv2d((1, 32, 6, 6, 8), (48, 256, 3, 3), padding=(1,) * 4, **BLOCKED)
    space = TEMPLATES["conv_direct_cpu"].space(kernel, target)
    for fetched in (False, True):
        config = {**space.default, "order": "weights", "passes": passes, "next_panel": fetched}
        assert_matches(kernel, target, config)
        assert ("prefetcht1" in build_kernel(kernel, target, config).source("asm")) == fetched


def test_passes_of_large_panels_share_the_second_level_cache() -> None:
    """ResNet-50's last 3x3 convolution with stride: a panel has 0.9 MB, the pixels 0.5; pointwise, 0.1 MB."""
    target = TARGETS["icelake-server"]

    def passes(size: int) -> object:
        kernel = conv2d(
            (1, 32, 14, 14, 16), (512, 512, size, size), strides=(2, 2), padding=(size // 2,) * 4,
            data_layout="NCHW16c", out_layout="NCHW16c",
        )  # fmt: skip
        space = TEMPLATES["conv_direct_cpu"].space(kernel, target)
        return space.complete(space.default)["passes"]

    assert (passes(3), passes(1)) == (4, 1)


def test_sums_stay_in_registers() -> None:
    target = TARGETS["x86-64-v4"]
    kernel = conv2d(
        (1, 4, 14, 14, 16), (64, 64, 3, 3), padding=(1,) * 4, data_layout="NCHW16c", out_layout="NCHW16c"
    )
    direct = TEMPLATES["conv_direct_cpu"].space(kernel, target).default
    lines = build_kernel(kernel, target, direct).source("asm").splitlines()
    multiplies = [line for line in lines if "vfmadd" in line and "zmm" in line]
    spills = [line for line in lines if "zmm" in line and "rsp" in line and "vmov" in line]
    assert len(multiplies) >= 16
    assert not spills
