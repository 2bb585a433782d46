"""Convolutions on GPUs: numbers on an emulated one; no spilling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mma_kernels import in_blocks

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Value
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for

TILE: Config = {
    "tile_m": 32, "tile_n": 64, "tile_k": 8, "thread_m": 4, "thread_n": 4,
    "stages": 2, "split": 1, "vector": 4,
}  # fmt: skip


def conv(
    data: tuple[int, ...],
    weights: tuple[int, ...],
    *after: str,
    constant: bool = True,
    dtype: str = "float32",
    **attrs: Attr,
) -> Kernel:
    """A convolution followed by `bias` (one an output channel), `residual` (full) or unary operators."""
    builder, rank = GraphBuilder(), len(weights) - 2
    x, w = builder.input("x", data, dtype), builder.input("w", weights, dtype)
    result: Value = builder.op(f"conv{rank}d", x, w, **attrs)
    for name in after:
        if name in ("bias", "residual"):
            shape = result.type.static_shape if name == "residual" else (weights[0], *(1,) * rank)
            result = builder.op("add", result, builder.input(name, shape, dtype))
        else:
            result = builder.op(name, result)
    return Kernel(builder.build(result), frozenset({1} if constant else ()))


def assert_matches(kernel: Kernel, target: Target, config: Config | None = None) -> None:
    generator = np.random.default_rng(0)
    types = [v.type for v in kernel.body.inputs]
    arrays = [generator.standard_normal(t.static_shape).astype(numpy_dtype(t.dtype)) for t in types]
    (found,), (expected,) = build_kernel(kernel, target, config)(arrays), evaluate(kernel.body, arrays)
    tolerance = {"float16": 4e-3}.get(types[0].dtype, 2e-6)
    wide = expected.astype(np.float64)
    assert np.abs(found - wide).max() <= tolerance * max(1.0, np.abs(wide).max())


SAME = (1, 1, 1, 1)
CASES = {
    "whole channels": (conv((1, 8, 9, 12), (32, 8, 3, 3), "bias", "relu", padding=SAME), {}),
    "few channels, strides": (
        conv((2, 3, 15, 13), (20, 3, 5, 5), "bias", padding=(2, 2, 2, 2), strides=(2, 2)),
        {},
    ),
    "pointwise": (conv((2, 12, 6, 8), (36, 12, 1, 1), "bias", "residual", "relu"), {}),
    "split": (conv((1, 32, 5, 7), (24, 32, 3, 3), "bias", "residual", padding=SAME), {"split": 4}),
    "dilated, uneven padding": (
        conv((1, 5, 11, 10), (7, 5, 3, 2), padding=(2, 0, 1, 1), dilation=(2, 3)),
        {},
    ),
    "weights that are not constant": (conv((1, 8, 6, 6), (12, 8, 3, 3), constant=False, padding=SAME), {}),
    "groups": (conv((2, 12, 7, 7), (24, 4, 3, 3), "bias", "relu", padding=SAME, groups=3), {}),
    "one spatial axis": (conv((2, 6, 40), (10, 6, 5), "relu", padding=(2, 2)), {}),
    "three spatial axes": (conv((1, 4, 4, 5, 6), (8, 4, 2, 3, 3), padding=(0, 1, 1, 1, 1, 1)), {}),
    "few channels, half precision": (conv((1, 3, 9, 9), (8, 3, 3, 3), dtype="float16", padding=SAME), {}),
    "few channels, split": (
        conv((2, 3, 19, 18), (32, 3, 5, 5), strides=(2, 1), padding=(2, 2, 2, 2)),
        {"tile_k": 16, "split": 2},
    ),
    "half precision": (
        conv((1, 16, 8, 8), (32, 16, 3, 3), "bias", "relu", dtype="float16", padding=SAME),
        {},
    ),
}


FAST = ("few channels, strides", "split", "rows of a thread", "strides", "one pixel", "blocks")


def cases(names: Iterable[str]) -> list[object]:
    """All of them, those that are not `FAST` for long runs alone."""
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("name", cases(CASES))
def test_convolutions_are_those_of_the_reference(name: str, gpu: Target) -> None:
    kernel, knobs = CASES[name]
    assert gpu.gpu is not None
    older = replace(gpu, gpu=replace(gpu.gpu, arch="sm_75"))  # whose tensor cores no template uses
    assert template_for(kernel, older).name == "conv_cuda"
    assert_matches(kernel, older, {**TILE, **knobs})


@pytest.mark.parametrize("padding", [(0,) * 4, SAME])
def test_behind_the_depth_is_nothing(padding: tuple[int, ...], gpu: Target) -> None:
    """27 taps are no whole steps of 8; a zero of a weight times what a pixel has would be no number."""
    kernel = conv((1, 3, 6, 6), (4, 3, 3, 3), padding=padding)
    arrays = [np.full((1, 3, 6, 6), np.inf, np.float32), np.ones((4, 3, 3, 3), np.float32)]
    assert gpu.gpu is not None
    older = replace(gpu, gpu=replace(gpu.gpu, arch="sm_75"))
    (found,) = build_kernel(kernel, older, {**TILE, "tile_n": 32})(arrays)
    assert np.all(found == np.inf)


@pytest.mark.parametrize(
    ("data", "weights", "attrs"),
    [
        ((1, 3, 60), (8, 3, 3), {"dilation": (8,), "padding": (8, 8)}),
        ((1, 2, 2**17), (4, 2, 3), {"strides": (64,), "padding": (1, 1)}),
    ],
)
def test_the_end_of_the_depth_is_in_no_image(
    data: tuple[int, ...], weights: tuple[int, ...], attrs: dict[str, Any], gpu: Target
) -> None:
    """Neither wide taps nor long images reach it; infinities are where it was read."""
    kernel = conv(data, weights, constant=False, **attrs)
    arrays = [np.ones(data, np.float32), np.ones(weights, np.float32)]
    arrays[0][:, :, 8:] = np.inf
    (found,), (expected,) = build_kernel(kernel, gpu, TILE)(arrays), evaluate(kernel.body, arrays)
    np.testing.assert_array_equal(found, expected)


DEPTHWISE = {
    "rows of a thread": (conv((2, 6, 9, 11), (6, 1, 3, 3), "bias", "relu", padding=SAME, groups=6), (4, 1)),
    "strides": (
        conv((1, 5, 12, 13), (5, 1, 5, 5), "bias", padding=(2, 2, 2, 2), strides=(2, 2), groups=5),
        (2, 2),
    ),
    "dilation": (
        conv((1, 4, 12, 12), (4, 1, 3, 3), padding=(2, 2, 2, 2), dilation=(2, 2), groups=4),
        (8, 2),
    ),
    "one pixel": (conv((1, 4, 1, 1), (4, 1, 3, 3), "bias", padding=SAME, groups=4), (1, 1)),
    "one axis": (conv((2, 4, 33), (4, 1, 7), "relu", padding=(3, 3), groups=4), (1, 4)),
    "three axes": (conv((1, 4, 5, 5, 6), (4, 1, 2, 3, 3), padding=(0, 1, 1, 1, 1, 1), groups=4), (2, 1)),
    "blocks": (
        conv(
            (2, 2, 7, 9, 8),
            (16, 1, 3, 3),
            "relu",
            dtype="float16",
            padding=SAME,
            strides=(2, 1),
            groups=16,
            **in_blocks(8, 8),
        ),
        (2, 1),
    ),
    "blocks, one of which is not full": (
        conv((1, 2, 5, 5, 4), (6, 1, 3, 3), padding=(0, 1, 1, 0), groups=6, **in_blocks(4, 4)),
        (1, 2),
    ),
    "int8 in blocks": (
        conv(
            (1, 1, 5, 6, 16),
            (16, 1, 3, 3),
            dtype="int8",
            out_dtype="int32",
            padding=SAME,
            pad_value=7,
            groups=16,
            **in_blocks(16, 16),
        ),
        (2, 1),
    ),
    "half precision": (
        conv((1, 8, 8, 8), (8, 1, 3, 3), "bias", "residual", dtype="float16", padding=SAME, groups=8),
        (2, 1),
    ),
}


@pytest.mark.parametrize("name", cases(DEPTHWISE))
def test_depthwise_convolutions(name: str, gpu: Target) -> None:
    kernel, (height, width) = DEPTHWISE[name]
    assert template_for(kernel, gpu).name == "depthwise_cuda"
    assert_matches(kernel, gpu, {"height": height, "width": width, "threads": 64})


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "height"),
    [((96, 112), 3, 1, 8), ((96, 112), 3, 2, 2), ((384, 14), 7, 1, 4), ((960, 7), 3, 1, 4)],
)
def test_rows_of_a_depthwise_thread(shape: tuple[int, int], kernel: int, stride: int, height: int) -> None:
    """Large windows of small images are bound by loads, of weights above all; large images by memory."""
    (channels, size), target = shape, TARGETS["nvidia/a100"]
    found = conv(
        (1, channels, size, size), (channels, 1, kernel, kernel),
        padding=(kernel // 2,) * 4, strides=(stride,) * 2, groups=channels,
    )  # fmt: skip
    assert template_for(found, target).space(found, target).default["height"] == height
