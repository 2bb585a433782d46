"""Blocked convolutions of 16-bit channels in pairs, against float32 sums of the same rounded operands."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pair_types import HARDWARE, PAIR_TYPES, assert_near, runnable

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import hot_loop, on_stack
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for


def conv(
    channels: int,
    size: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    padding: int = 1,
) -> dict[str, Kernel]:
    """A 16-bit convolution with a float32 bias, relu and a 16-bit residual, by type."""
    sizes = (channels, size, outputs, kernel, stride, groups, padding)
    return {dtype: _conv(dtype, *sizes) for dtype in ("float16", "bfloat16")}


def _conv(
    dtype: str, channels: int, size: int, outputs: int, kernel: int, stride: int, groups: int, padding: int
) -> Kernel:
    builder = GraphBuilder()
    data = builder.input("data", (1, -(-channels // 16), size, size, 16), dtype)
    weight = builder.input("weight", (outputs, channels // groups, kernel, kernel), dtype)
    result = builder.op(
        "conv2d",
        data,
        weight,
        strides=(stride, stride),
        padding=(padding,) * 4,
        groups=groups,
        data_layout="NCHW16c",
        out_layout="NCHW16c",
        out_dtype="float32",
    )
    bias = builder.input("bias", (1, -(-outputs // 16), 1, 1, 16))
    residual = builder.op("cast", builder.input("r", result.type.static_shape, dtype), dtype="float32")
    summed = builder.op("relu", builder.op("add", builder.op("add", result, bias), residual))
    return Kernel(builder.build(builder.op("cast", summed, dtype=dtype)), frozenset({1, 2}))


CASES = {
    "3x3": conv(64, 14, 64),
    "strided": conv(32, 15, 48, stride=2),
    "1x1": conv(256, 7, 64, 1, padding=0),
    "1x1 strided": conv(64, 14, 32, 1, 2, padding=0),
    "ragged channels": conv(24, 9, 40),
    "odd channels": conv(17, 9, 20),
    "grouped": conv(64, 8, 64, groups=2),
    "grouped by four": conv(64, 8, 64, groups=16),
    "depthwise": conv(48, 9, 48, groups=48),
}


def assert_matches(kernel: Kernel, target: Target, config: Config | None = None) -> None:
    generator = np.random.default_rng(0)
    inputs = [(v.type.static_shape, numpy_dtype(v.dtype)) for v in kernel.body.inputs]
    arrays = [generator.standard_normal(shape).astype(dtype) for shape, dtype in inputs]
    assert kernel.anchor is not None
    ragged = Convolution.of(kernel.anchor).in_channels % 16
    if ragged:
        arrays[0][:, -1, ..., ragged:] = 0
    (found,) = build_kernel(kernel, target, config)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    outputs = Convolution.of(kernel.anchor).out_channels
    plain = [np.moveaxis(x, -1, 2).reshape(1, -1, *x.shape[2:4])[:, :outputs] for x in (found, expected)]
    assert_near(plain[0], plain[1], kernel.body.inputs[0].dtype)


def direct(kernel: Kernel, target: Target) -> Config:
    """The default of direct convolution, where there is another algorithm too."""
    template = template_for(kernel, target)
    return template.algorithms.get("conv_direct_cpu", template).space(kernel, target).default


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", PAIR_TYPES)
def test_convolutions(dtype: str, name: str) -> None:
    kernel, target = CASES[name][dtype], runnable(dtype)
    assert_matches(kernel, target, direct(kernel, target))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", PAIR_TYPES)
def test_random_configs(dtype: str, seed: int) -> None:
    kernel, target = CASES["3x3" if seed % 2 else "1x1"][dtype], runnable(dtype)
    space = template_for(kernel, target).space(kernel, target)
    assert_matches(kernel, target, space.random(random.Random(seed)))


def test_whole_chunks_are_multiplied_in_pairs() -> None:
    sums = ways_to_sum(HARDWARE["float16"], "float16")
    anchors = {name: CASES[name]["float16"].anchor for name in ("3x3", "ragged channels", "odd channels")}
    chunks = {n: Convolution.of(a).in_groups(sums) for n, a in anchors.items() if a is not None}
    assert [(c.group == 2, c.chunk_steps) for c in chunks.values()] == [(True, 8), (True, 4), (True, 8)]


@pytest.mark.parametrize("name", ["3x3", "1x1", "strided"])
@pytest.mark.parametrize(("dtype", "instruction"), [("float16", "vfmadd231ph"), ("bfloat16", "vdpbf16ps")])
def test_the_inner_loop_multiplies_whole_vectors(dtype: str, instruction: str, name: str) -> None:
    kernel, target = CASES[name][dtype], HARDWARE[dtype]
    loop = hot_loop(build_kernel(kernel, target, direct(kernel, target)).source(), multiply=instruction)
    products = [line for line in loop if line.startswith(instruction)]
    assert len(products) >= 12
    assert all("zmm" in line for line in products)
    assert not on_stack(loop)


@pytest.mark.parametrize(("tag", "dtype"), [("x86-64-v4", "float16"), ("icelake-server", "bfloat16")])
def test_other_targets_multiply_in_float32(tag: str, dtype: str) -> None:
    kernel, target = CASES["1x1"][dtype], TARGETS[tag]
    source = build_kernel(kernel, target).source()
    assert "vfmadd231ps" in source
    assert "vdpbf16ps" not in source
    assert not [line for line in source.splitlines() if "vfmadd" in line and "ph\t" in line]
