"""Blocked convolutions of float16 channels in pairs, against float32 sums of the same rounded operands."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.target.host import host_target
from tcomp.target.target import TARGETS
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.template import template_for

needs_fp16 = pytest.mark.skipif(not host_target().has("avx512fp16"), reason="this CPU has no AVX512-FP16")


def conv(
    channels: int,
    size: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    padding: int = 1,
) -> Kernel:
    """A float16 convolution with a float32 bias, relu and a float16 residual."""
    builder = GraphBuilder()
    data = builder.input("data", (1, -(-channels // 16), size, size, 16), "float16")
    weight = builder.input("weight", (outputs, channels // groups, kernel, kernel), "float16")
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
    residual = builder.op("cast", builder.input("r", result.type.static_shape, "float16"), dtype="float32")
    summed = builder.op("relu", builder.op("add", builder.op("add", result, bias), residual))
    return Kernel(builder.build(builder.op("cast", summed, dtype="float16")), frozenset({1, 2}))


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


def assert_matches(kernel: Kernel, config: Config | None = None) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(v.type.static_shape).astype(v.dtype) for v in kernel.body.inputs]
    assert kernel.anchor is not None
    ragged = Convolution.of(kernel.anchor).in_channels % 16
    if ragged:
        arrays[0][:, -1, ..., ragged:] = 0
    (found,) = build_kernel(kernel, host_target(), config)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    outputs = Convolution.of(kernel.anchor).out_channels
    plain = [np.moveaxis(x, -1, 2).reshape(1, -1, *x.shape[2:4])[:, :outputs] for x in (found, expected)]
    error = plain[0].astype(np.float64) - plain[1].astype(np.float64)
    scale = np.sqrt((plain[1].astype(np.float64) ** 2).mean())
    assert np.sqrt((error**2).mean()) <= 2e-3 * scale
    assert np.abs(error).max() <= 2e-2 * scale


@needs_fp16
@pytest.mark.parametrize("name", CASES)
def test_convolutions(name: str) -> None:
    assert_matches(CASES[name])


@needs_fp16
@pytest.mark.parametrize("seed", range(6))
def test_random_configs(seed: int) -> None:
    kernel = CASES["3x3" if seed % 2 else "1x1"]
    space = template_for(kernel, host_target()).space(kernel, host_target())
    assert_matches(kernel, space.random(random.Random(seed)))


def test_whole_chunks_are_multiplied_in_pairs() -> None:
    anchors = {name: CASES[name].anchor for name in ("3x3", "ragged channels", "odd channels")}
    chunks = {n: Convolution.of(a).in_pairs() for n, a in anchors.items() if a is not None}
    assert [(c.pairs, c.chunk_steps) for c in chunks.values()] == [(True, 8), (True, 4), (True, 8)]


@needs_fp16
def test_the_inner_loop_multiplies_whole_vectors() -> None:
    source = build_kernel(CASES["3x3"], TARGETS["sapphirerapids"]).source()
    lines = [line for line in source.splitlines() if "vfmadd231ph" in line or "vfmadd213ph" in line]
    assert lines
    assert all("zmm" in line for line in lines)


def test_other_targets_multiply_in_float32() -> None:
    kernel, target = CASES["1x1"], TARGETS["x86-64-v4"]
    source = build_kernel(kernel, target).source()
    assert "vfmadd231ps" in source
    assert not [line for line in source.splitlines() if "vfmadd" in line and "ph\t" in line]
