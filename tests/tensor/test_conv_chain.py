"""Chains of pointwise, depthwise and pointwise convolution in one kernel, against the references."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.errors import UnsupportedError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Value
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.cpu.conv_chain import ConvChain
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for
from tcomp.tuner.estimate import estimate
from tcomp.tuner.features import features_of
from tcomp.tuner.task import Task

KIB, MIB = 1024, 1024 * 1024
BLOCK = 8
LAYOUT = f"NCHW{BLOCK}c"


@pytest.fixture(scope="module")
def target() -> Target:
    return replace(TARGETS["x86-64-v3"], cores=2)


class _Builder:
    """A kernel of blocked convolutions whose weights and biases are constant inputs."""

    def __init__(self) -> None:
        self.graph = GraphBuilder()
        self.inputs: list[str] = []

    def input(self, shape: tuple[int, ...]) -> Value:
        self.inputs.append(f"input{len(self.inputs)}")
        return self.graph.input(self.inputs[-1], shape)

    def conv(self, data: Value, outputs: int, inputs: int, kernel: int = 1, **attrs: Attr) -> Value:
        """A convolution with bias; `inputs` channels of each group."""
        weight = self.input((outputs, inputs, kernel, kernel))
        result = self.graph.op("conv2d", data, weight, data_layout=LAYOUT, out_layout=LAYOUT, **attrs)
        return self.graph.op("add", result, self.input((1, -(-outputs // BLOCK), 1, 1, BLOCK)))


def chain(
    channels: tuple[int, int, int],
    size: tuple[int, int],
    kernel: int = 3,
    batch: int = 1,
    activation: str = "relu",
    residual: bool = False,
    **attrs: Attr,
) -> Kernel:
    """An inverted residual of `channels` inputs, hidden channels and outputs."""
    builder = _Builder()
    inputs, hidden, outputs = channels
    data = builder.input((batch, -(-inputs // BLOCK), *size, BLOCK))
    value = builder.conv(data, hidden, inputs)
    value = builder.graph.op(activation, value) if activation else value
    value = builder.conv(value, hidden, 1, kernel, groups=hidden, **attrs)
    value = builder.graph.op(activation, value) if activation else value
    value = builder.conv(value, outputs, hidden)
    value = builder.graph.op("add", value, data) if residual else value
    return Kernel(builder.graph.build(value), frozenset(range(1, len(builder.inputs))))


def arrays_of(kernel: Kernel) -> list[Array]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(v.type.static_shape, dtype=np.float32) for v in kernel.body.inputs]


def run(kernel: Kernel, target: Target, config: Config | None = None) -> Array:
    (found,) = build_kernel(kernel, target, config)(arrays_of(kernel))
    return found


@pytest.mark.parametrize(
    ("channels", "size", "options"),
    [
        ((16, 48, 24), (9, 14), {"padding": (1, 1, 1, 1)}),
        ((16, 48, 24), (14, 13), {"padding": (1, 1, 1, 1), "strides": (2, 2)}),
        ((12, 20, 9), (11, 10), {"padding": (1, 1, 1, 1), "activation": "hard_swish"}),
        ((8, 24, 16), (12, 12), {"kernel": 5, "padding": (2, 2, 2, 2), "batch": 2}),
        ((8, 24, 16), (12, 17), {"kernel": 5, "padding": (2, 2, 2, 2), "strides": (2, 2), "activation": ""}),
        ((16, 32, 16), (10, 9), {"padding": (1, 1, 1, 1), "residual": True, "batch": 3}),
        ((8, 16, 8), (8, 9), {}),
        ((8, 16, 8), (9, 9), {"padding": (2, 2, 2, 2), "dilation": (2, 2)}),
        ((8, 16, 8), (3, 4), {"padding": (4, 4, 4, 4)}),
        ((8, 16, 8), (12, 12), {"strides": (4, 4)}),
    ],
)
def test_matches_reference(
    channels: tuple[int, int, int], size: tuple[int, int], options: dict[str, Attr], target: Target
) -> None:
    kernel = chain(channels, size, **options)  # pyright: ignore[reportArgumentType]
    assert template_for(kernel, target).name == "conv_chain_cpu"
    (expected,) = evaluate(kernel.body, arrays_of(kernel))
    assert np.abs(run(kernel, target) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_pieces_give_the_same_bits(target: Target) -> None:
    kernel = chain((8, 24, 8), (11, 10), padding=(1, 1, 1, 1), strides=(2, 2))
    space = template_for(kernel, target).space(kernel, target)
    (pieces,) = (k for k in space.knobs if k.name == "pieces")
    assert pieces.values == (1, 2, 4)
    results = {run(kernel, target, {**space.default, "pieces": p}).tobytes() for p in pieces.values}
    assert len(results) == 1


def test_random_configs_match(target: Target) -> None:
    kernel = chain((12, 40, 24), (7, 15), padding=(1, 1, 1, 1))
    space = template_for(kernel, target).space(kernel, target)
    (expected,) = evaluate(kernel.body, arrays_of(kernel))
    rng = random.Random(0)
    for _ in range(6):
        config = space.random(rng)
        assert np.abs(run(kernel, target, config) - expected).max() <= 1e-5 * np.abs(expected).max(), config


def test_the_estimate_counts_all_three_convolutions(target: Target) -> None:
    narrow, wide = chain((16, 48, 24), (28, 28)), chain((16, 96, 24), (28, 28))
    cycles = []
    for kernel in (narrow, wide):
        task = Task.of(kernel, target)
        cycles.append(estimate(features_of(task, task.space.default), target))
        layers = [ConvChain.of(kernel.anchors)]
        assert all(layer is not None and 2 * layer.products < kernel.flops for layer in layers)
    assert 1.5 < cycles[1] / cycles[0] < 2.5


def test_a_chain_read_in_the_middle_has_no_template(target: Target) -> None:
    builder = _Builder()
    hidden = builder.conv(builder.input((1, 1, 6, 6, BLOCK)), 16, 8)
    filtered = builder.conv(hidden, 16, 1, 3, groups=16, padding=(1, 1, 1, 1))
    result = builder.graph.op("add", builder.conv(filtered, 16, 16), hidden)
    kernel = Kernel(builder.graph.build(result), frozenset(range(1, len(builder.inputs))))
    with pytest.raises(UnsupportedError, match="no schedule template"):
        template_for(kernel, target)


def mobilenet_block(hidden: int, size: int, stride: int, inputs: int, outputs: int) -> ConvChain:
    kernel = chain((inputs, hidden, outputs), (size, size), padding=(1, 1, 1, 1), strides=(stride, stride))
    found = ConvChain.of(kernel.anchors)
    assert found is not None
    return found


def test_pieces_keep_cores_busy_and_few_rows_are_computed_twice() -> None:
    strided, plain = mobilenet_block(96, 112, 2, 16, 24), mobilenet_block(144, 56, 1, 24, 24)
    assert [strided.row_pieces.best(cores) for cores in (1, 2, 4, 6)] == [4, 4, 4, 6]
    assert [plain.row_pieces.best(cores) for cores in (1, 2, 4, 100)] == [2, 2, 4, 56]


@pytest.mark.parametrize(
    ("block", "near_bytes", "cores", "pays"),
    [
        ((96, 112, 2, 16, 24), 512 * KIB, 1, True),
        ((144, 56, 1, 24, 24), 512 * KIB, 2, True),
        ((144, 56, 2, 24, 32), 512 * KIB, 2, False),
        ((192, 28, 1, 32, 32), 512 * KIB, 1, False),
        ((384, 14, 1, 64, 64), 512 * KIB, 1, False),
        ((96, 112, 2, 16, 24), 1 * MIB, 4, True),
        ((144, 56, 1, 24, 24), 2 * MIB, 1, False),
        ((144, 56, 1, 24, 24), 512 * KIB, 16, False),
    ],
)
def test_a_chain_pays_where_hidden_tensors_leave_the_cache(
    block: tuple[int, int, int, int, int], near_bytes: int, cores: int, pays: bool
) -> None:
    """On many cores, pieces are so small that most rows would be computed twice."""
    assert mobilenet_block(*block).pays(near_bytes, cores) is pays
