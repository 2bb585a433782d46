"""Depthwise convolution in blocked layout, against the operator's own reference."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for


@pytest.fixture(scope="module")
def target() -> Target:
    return TARGETS["x86-64-v3"]


def depthwise(channels: int, size: tuple[int, int], kernel: int, block: int = 8, **attrs: Attr) -> Kernel:
    builder = GraphBuilder()
    layout = f"NCHW{block}c"
    blocks = -(-channels // block)
    data = builder.input("data", (1, blocks, *size, block))
    weight = builder.input("weight", (channels, 1, kernel, kernel))
    bias = builder.input("bias", (1, blocks, 1, 1, block))
    result = builder.op(
        "conv2d", data, weight, groups=channels, data_layout=layout, out_layout=layout, **attrs
    )
    return Kernel(builder.build(builder.op("relu", builder.op("add", result, bias))), frozenset({1, 2}))


def assert_matches(kernel: Kernel, target: Target, config: dict[str, int] | None = None) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(v.type.static_shape, dtype=np.float32) for v in kernel.body.inputs]
    assert template_for(kernel, target).name == "depthwise_cpu"
    (found,) = build_kernel(kernel, target, config)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "attrs"),
    [
        (16, (9, 30), 3, {"padding": (1, 1, 1, 1)}),
        (16, (14, 14), 3, {"padding": (1, 1, 1, 1), "strides": (2, 2)}),
        (12, (8, 23), 5, {"padding": (2, 2, 2, 2), "strides": (2, 2)}),
        (8, (7, 7), 5, {"padding": (2, 2, 2, 2)}),
        (8, (12, 9), 3, {"padding": (2, 2, 2, 2), "dilation": (2, 2)}),
        (8, (6, 20), 3, {}),
        (8, (2, 3), 3, {"padding": (4, 4, 4, 4)}),
    ],
)
def test_matches_reference(
    channels: int, size: tuple[int, int], kernel: int, attrs: dict[str, Attr], target: Target
) -> None:
    assert_matches(depthwise(channels, size, kernel, **attrs), target)


@pytest.mark.parametrize("tile_width", [1, 3, 4])
def test_every_tile_width_matches(tile_width: int, target: Target) -> None:
    kernel = depthwise(8, (5, 22), 3, padding=(1, 1, 1, 1))
    assert_matches(kernel, target, {"tile_width": tile_width})


def test_one_block_of_two_vectors(target: Target) -> None:
    assert_matches(depthwise(20, (6, 10), 3, block=16, padding=(1, 1, 1, 1)), target)
