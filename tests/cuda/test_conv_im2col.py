"""Windows of convolutions that the copy engine brings: numbers on an emulated GPU, choices, resources."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mma_kernels import assert_computes, conv, in_blocks
from test_conv_mma import P
from test_matmul_wgmma import HOPPER, SMALL

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import device_code
from tcomp.codegen.jit import build_scheduled
from tcomp.errors import ScheduleError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import KnobValue
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import TEMPLATES

TEMPLATE = "conv_wgmma_cuda"
TILES: dict[str, KnobValue] = {**SMALL, "gathers": 0}

KERNELS = {
    "blocks, strides": conv(
        (5, 2, 6, 7, 64), (40, 128, 3, 3), True, strides=(2, 1), padding=(1, 0, 0, 2), **in_blocks(64, 40)
    ),
    "all channels of a pixel": conv((2, 1, 5, 7, 128), (16, 128, 3, 2), True, padding=P, **in_blocks(128, 8)),
    "ragged channels, dilated": conv(
        (1, 2, 9, 10, 64), (19, 100, 2, 3), dilation=(3, 2), padding=(2, 1, 3, 1), **in_blocks(64, 8)
    ),
    "1x1, strides": conv((2, 2, 9, 9, 64), (64, 128, 1, 1), strides=(2, 3), **in_blocks(64, 64)),
    "plain": conv((2, 64, 7, 9), (18, 64, 3, 3), True, strides=(2, 2), padding=P),
    "one axis": conv((2, 2, 70, 64), (16, 128, 5), padding=(2, 2), **in_blocks(64, 16)),
    "three axes": conv((2, 1, 4, 5, 3, 64), (8, 64, 2, 3, 1), padding=(1, 0, 0, 0, 1, 0), **in_blocks(64, 8)),
    "bfloat16": conv((1, 1, 5, 5, 64), (8, 64, 3, 3), dtype="bfloat16", padding=P, **in_blocks(64, 8)),
    "tf32": conv(
        (2, 2, 5, 5, 32), (16, 64, 3, 3), True, padding=P, dtype="float32", multiply_as="tf32",
        **in_blocks(32, 32),
    ),
    "tf32, plain": conv((1, 32, 9, 9), (18, 32, 3, 3), padding=P, dtype="float32", multiply_as="tf32"),
    "float8": conv(
        (2, 2, 5, 5, 128), (16, 256, 3, 3), padding=P, dtype="float8_e4m3fn", out_dtype="float32",
        **in_blocks(128, 8),
    ),
    "float8, plain": conv(
        (1, 128, 5, 5), (24, 128, 3, 3), padding=P, dtype="float8_e5m2", out_dtype="float32",
    ),
    "int8": conv(
        (2, 2, 5, 5, 128), (16, 256, 3, 3), padding=P, dtype="int8", out_dtype="int32", **in_blocks(128, 16)
    ),
}  # fmt: skip
FEW = ("blocks, strides", "tf32", "float8")
"""Those that are always tested: g++ takes long for each."""


def activated(data: tuple[int, ...], weight: tuple[int, ...], activation: str) -> Kernel:
    """A 3x3 convolution of blocks of 64 channels, and an activation of many instructions."""
    g = GraphBuilder()
    x, w = g.input("data", data, "float16"), g.input("weight", weight, "float16")
    return Kernel(
        g.build(g.op(activation, g.op("conv2d", x, w, padding=P, **in_blocks(64, 64)))), frozenset({1})
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
@pytest.mark.usefixtures("gpu")
def test_numbers(name: str) -> None:
    assert_computes(KERNELS[name], HOPPER, TEMPLATE, TILES)


@pytest.mark.parametrize(
    "knobs",
    [
        pytest.param({"splits": 4, "stages": 3}, marks=pytest.mark.slow),
        pytest.param({"cluster": 2, "block_columns": 128, "group": 2}, marks=pytest.mark.slow),
        pytest.param({"block_rows": 128, "block_columns": 192, "consumers": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.usefixtures("gpu")
def test_several_tiles_a_block(knobs: dict[str, int]) -> None:
    assert HOPPER.gpu is not None
    few = replace(HOPPER, gpu=replace(HOPPER.gpu, processors=1))
    assert_computes(KERNELS["blocks, strides"], few, TEMPLATE, {**TILES, **knobs})


STORED = {
    "two blocks, parts of two images": conv(
        (5, 1, 7, 5, 64), (128, 64, 3, 3), True, strides=(2, 1), padding=P, **in_blocks(64, 64)
    ),
    "few pixels of an image": conv((9, 1, 2, 2, 64), (40, 64, 1, 1), True, **in_blocks(64, 40)),
    "float32, whole parts of an image": conv(
        (2, 1, 4, 8, 64), (64, 64, 1, 1), out_dtype="float32", **in_blocks(64, 32)
    ),
}


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("two blocks, parts of two images", {"buffers": 1}),
        pytest.param("few pixels of an image", {"buffers": 1}, marks=pytest.mark.slow),
        pytest.param("float32, whole parts of an image", {"buffers": 2}, marks=pytest.mark.slow),
        pytest.param(
            "two blocks, parts of two images",
            {"buffers": 1, "pingpong": 1, "consumers": 2, "gathers": 1, "stages": 3},
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_output_is_stored_in_tiles(name: str, knobs: dict[str, int]) -> None:
    assert_computes(STORED[name], HOPPER, TEMPLATE, {**TILES, **knobs})


@pytest.mark.parametrize(("images", "size", "copied"), [(2, 7, False), (1, 7, True), (2, 14, True)])
def test_stores_of_a_few_pixels_are_left_to_threads(images: int, size: int, copied: bool) -> None:
    """Copies do not begin before an image, so they store as many pixels as divide it."""
    kernel = conv((images, 1, size, size, 64), (64, 64, 1, 1), **in_blocks(64, 64))
    said = TEMPLATES[TEMPLATE].space(kernel, HOPPER).legal({**TILES, "buffers": 1})
    assert said == (None if copied else "an output of which no tiles can be stored, through buffers")


@pytest.mark.usefixtures("gpu")
def test_behind_the_depth_there_are_zeros() -> None:
    """Nine steps have two parts of five: infinities would be NaN times the zeros that weights are there."""
    kernel = conv((1, 1, 5, 5, 64), (8, 64, 3, 3), constant=False, padding=P, **in_blocks(64, 8))
    data, weight = np.ones((1, 1, 5, 5, 64), "float16"), np.ones((8, 64, 3, 3), "float16")
    data[0, 0, 2, 2, 5] = np.inf
    config = {**TILES, "splits": 2}
    (found,) = build_scheduled(kernel, TEMPLATES[TEMPLATE].apply(kernel, HOPPER, config), HOPPER)(
        [data, weight]
    )
    (expected,) = evaluate(kernel.body, [data, weight])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (conv((1, 4, 9, 9, 16), (16, 64, 3, 3), padding=P, **in_blocks(16, 16)), "lines that are not whole"),
        (conv((1, 1, 99, 9, 64), (16, 64, 3, 3), strides=(9, 1), **in_blocks(64, 16)), "a long step"),
        (conv((1, 2, 50, 9, 64), (16, 128, 3, 3), dilation=(16, 1), **in_blocks(64, 16)), "a far tap"),
        (
            conv(
                (1, 1, 9, 9, 128),
                (16, 128, 3, 3),
                dtype="int8",
                out_dtype="int32",
                padding=P,
                pad_value=3,
                **in_blocks(128, 16),
            ),
            "a border that is not zero",
        ),
        (conv((1, 2, 5, 5, 5, 64), (16, 128, 1, 1, 1), **in_blocks(64, 16)), "axes of pixels, and blocks"),
    ],
)
def test_what_is_left_to_chunks(kernel: Kernel, why: str) -> None:
    space = TEMPLATES[TEMPLATE].space(kernel, HOPPER)
    assert "gathers" not in space.default, why
    with pytest.raises(ScheduleError, match="knob `gathers` is 0; allowed: 1"):
        space.check(TILES)


def test_a_map_reaches_further_where_all_channels_are_one_block() -> None:
    kernel = conv((1, 1, 50, 9, 64), (16, 64, 3, 3), dilation=(16, 1), **in_blocks(64, 16))
    assert TEMPLATES[TEMPLATE].space(kernel, HOPPER).default["gathers"] == 0


LAYERS = {
    "blocks": conv((32, 2, 28, 28, 64), (128, 128, 3, 3), True, padding=P, **in_blocks(64, 64)),
    "strides": conv((8, 4, 28, 28, 64), (256, 256, 3, 3), strides=(2, 2), padding=P, **in_blocks(64, 64)),
    "plain": conv((32, 256, 28, 28), (256, 256, 3, 3), True, padding=P),
    "tf32": conv(
        (32, 8, 28, 28, 32), (256, 256, 3, 3), True, padding=P, dtype="float32", multiply_as="tf32",
        **in_blocks(32, 32),
    ),
    "gelu": activated((32, 4, 28, 28, 64), (256, 256, 3, 3), "gelu"),
}  # fmt: skip
"""Of ResNet-50, 32 images."""


def test_estimates() -> None:
    """Thousands of cycles, as in docs/design/cuda.md: by tiles of windows and by `mma.sync`."""
    for name, tiles, other in (("blocks", 25.0, 29.3), ("tf32", 142.8, 181.0)):
        table = template_for(LAYERS[name], HOPPER).algorithms
        found = [table[one].estimate(LAYERS[name], HOPPER) / 1000 for one in (TEMPLATE, "conv_mma_cuda")]
        assert found == pytest.approx([tiles, other], rel=0.01), name
    assert template_for(LAYERS["tf32"], TARGETS["cuda:sm_90"]).id == "conv_mma_cuda@1"


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("real_compiler")
def test_defaults_neither_spill_nor_wait(name: str) -> None:
    template, kernel = TEMPLATES[TEMPLATE], LAYERS[name]
    space = template.space(kernel, HOPPER)
    assert space.default["gathers"] == 0
    code = device_code(
        template.apply(kernel, HOPPER, space.complete(space.default)).function, "kernel", HOPPER
    )
    cubin = compile_cubin(code.source, "sm_90a")
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())
    assert cubin.losses == ()
