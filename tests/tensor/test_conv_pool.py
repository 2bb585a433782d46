"""Convolution and max pooling in one kernel, against the references and against two kernels."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from runnable import RUNNABLE

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Graph, Value
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.cpu.conv_pool import ConvPool
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for
from tcomp.transform.fuse_ops import FuseOps

BLOCK = 8
LAYOUT = f"NCHW{BLOCK}c"
NAME = "conv_pool_cpu"


@pytest.fixture(scope="module")
def target() -> Target:
    return replace(TARGETS["x86-64-v3"], cores=2)


def pooled(
    channels: tuple[int, int],
    size: tuple[int, int],
    conv: dict[str, Attr],
    pool: dict[str, Attr],
    kernel: int = 3,
    batch: int = 1,
    plain: bool = False,
    epilogue: bool = False,
) -> Kernel:
    """A convolution with bias and relu, and max pooling; with `plain` the input is in NCHW."""
    builder, (inputs, outputs) = GraphBuilder(), channels
    shape = (batch, inputs, *size) if plain else (batch, -(-inputs // BLOCK), *size, BLOCK)
    data = builder.input("data", shape)
    weight = builder.input("weight", (outputs, inputs, kernel, kernel))
    bias = builder.input("bias", (1, -(-outputs // BLOCK), 1, 1, BLOCK))
    layouts: dict[str, Attr] = {"data_layout": "NCHW" if plain else LAYOUT, "out_layout": LAYOUT}
    value = builder.op("conv2d", data, weight, name="", **layouts, **conv)
    value = builder.op("relu", builder.op("add", value, bias))
    value = builder.op("max_pool2d", value, name="", **{**pool, "data_layout": LAYOUT})
    if epilogue:
        value = builder.op("tanh", builder.op("add", value, builder.input("more", value.type.static_shape)))
    return Kernel(builder.build(value), frozenset((1, 2)))


def arrays_of(kernel: Kernel) -> list[Array]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(v.type.static_shape, dtype=np.float32) for v in kernel.body.inputs]


def run(kernel: Kernel, target: Target, config: Config | None = None) -> Array:
    (found,) = build_kernel(kernel, target, config)(arrays_of(kernel))
    return found


SAME: dict[str, Attr] = {"padding": (1, 1, 1, 1)}
HALF: dict[str, Attr] = {"padding": (1, 1, 1, 1), "strides": (2, 2)}
OF_THREE: dict[str, Attr] = {"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1)}
OF_TWO: dict[str, Attr] = {"kernel": (2, 2), "strides": (2, 2), "padding": (0, 0, 0, 0)}
CASES: list[tuple[tuple[int, int], tuple[int, int], dict[str, Attr], dict[str, Attr], dict[str, int]]] = [
    ((3, 16), (17, 22), HALF, OF_THREE, {"plain": True}),
    ((3, 20), (18, 15), HALF, OF_THREE, {"plain": True, "kernel": 7, "batch": 2}),
    ((12, 24), (9, 14), SAME, OF_TWO, {}),
    ((8, 16), (9, 11), SAME, {**OF_TWO, "ceil_mode": True}, {"epilogue": True}),
    ((8, 16), (12, 11), {}, {**OF_THREE, "padding": (0, 2, 2, 0)}, {"batch": 3}),
    ((16, 8), (11, 10), {}, {**OF_TWO, "strides": (3, 3)}, {"kernel": 1}),
    ((8, 8), (7, 9), SAME, {"kernel": (5, 3), "strides": (1, 1), "padding": (4, 2, 0, 0)}, {}),
    ((8, 8), (3, 3), {}, {"kernel": (2, 2), "strides": (1, 1), "padding": (1, 1, 1, 1)}, {}),
]


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize(("channels", "size", "conv", "pool", "options"), CASES)
def test_matches_reference(
    channels: tuple[int, int],
    size: tuple[int, int],
    conv: dict[str, Attr],
    pool: dict[str, Attr],
    options: dict[str, int],
    name: str,
) -> None:
    kernel, target = pooled(channels, size, conv, pool, **options), TARGETS[name]  # pyright: ignore[reportArgumentType]
    assert template_for(kernel, target).name == NAME
    (expected,) = evaluate(kernel.body, arrays_of(kernel))
    assert np.abs(run(kernel, target) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_pieces_give_the_same_bits(target: Target) -> None:
    kernel = pooled((3, 16), (23, 18), HALF, OF_THREE, plain=True)
    space = template_for(kernel, target).space(kernel, target)
    (pieces,) = (k for k in space.knobs if k.name == "pieces")
    assert pieces.values == (1, 2, 4)
    results = {run(kernel, target, {**space.default, "pieces": p}).tobytes() for p in pieces.values}
    assert len(results) == 1


def test_random_configs_match(target: Target) -> None:
    kernel = pooled((12, 40), (9, 15), SAME, OF_THREE)
    space = template_for(kernel, target).space(kernel, target)
    (expected,) = evaluate(kernel.body, arrays_of(kernel))
    rng = random.Random(0)
    for _ in range(6):
        config = space.random(rng)
        assert np.abs(run(kernel, target, config) - expected).max() <= 1e-5 * np.abs(expected).max(), config


@pytest.mark.parametrize(
    "pool",
    [
        {"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1), "dilation": (2, 2)},
        {"kernel": (6, 6), "strides": (2, 2), "padding": (1, 1, 1, 1)},
    ],
    ids=["dilated", "large"],
)
def test_windows_that_are_left_alone(pool: dict[str, Attr]) -> None:
    assert ConvPool.of(pooled((8, 8), (14, 14), SAME, pool).anchors) is None


def test_it_pays_where_the_tensor_between_leaves_the_cache() -> None:
    first = ConvPool.of(
        pooled(
            (3, 64), (224, 224), {"padding": (3, 3, 3, 3), "strides": (2, 2)}, OF_THREE, 7, plain=True
        ).anchors
    )
    whole = ConvPool.of(pooled((64, 64), (112, 112), SAME, OF_TWO).anchors)
    assert first is not None
    assert whole is not None
    assert first.pays(1 << 20, cores=2)
    assert not first.pays(4 << 20, cores=2)
    assert not first.pays(1 << 20, cores=56)  # Most rows would be computed twice.
    assert not whole.pays(1 << 16, cores=1)  # Winograd's.


def graph(**pool: Attr) -> tuple[GraphBuilder, Value, Value]:
    builder = GraphBuilder()
    weight = builder.constant(np.ones((16, 3, 5, 5), np.float32))
    conv = builder.op("conv2d", builder.input("x", (1, 3, 30, 30)), weight, out_layout=LAYOUT)
    active = builder.op("relu", conv)
    return builder, active, builder.op("max_pool2d", active, name="", **{**pool, "data_layout": LAYOUT})


def kernels_of(found: Graph) -> int:
    return len(FuseOps(near_bytes=1024, cores=1).transform(found, Counter()).nodes)


def test_fusion_joins_what_one_pooling_alone_reads() -> None:
    builder, _, result = graph(**OF_THREE)
    assert kernels_of(builder.build(result)) == 1
    builder, active, result = graph(**OF_THREE)
    assert kernels_of(builder.build(result, active)) == 2
    builder, active, result = graph(**OF_THREE)
    assert (
        kernels_of(
            builder.build(builder.op("max_pool2d", result, name="", **{**OF_TWO, "data_layout": LAYOUT}))
        )
        == 2
    )
    builder, _, result = graph(**OF_THREE, dilation=(2, 2))
    assert kernels_of(builder.build(result)) == 2
