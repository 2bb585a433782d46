"""A library whose kernels have maps of tensors: of a caller's, of the arena's, of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device_arrays import OnGpu
from test_matmul_wgmma import HOPPER, TEMPLATE

from tcomp import api
from tcomp.codegen.artifact import compile_graph
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array
from tcomp.runtime import load
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Alternatives, Config
from tcomp.tensor.selection import template_for
from tcomp.transform.precision import Precision

pytestmark = pytest.mark.emulated

SHAPE = (256, 512)


def layers() -> Graph:
    rng = np.random.default_rng(0)
    g = GraphBuilder("layers")
    x = g.input("x", SHAPE, "float16")
    for columns in (512, 384):
        weight = rng.integers(-1, 2, (x.type.static_shape[1], columns)).astype(np.float16)
        x = g.op("relu", g.op("matmul", x, g.constant(weight)))
    return g.build(x)


def data(seed: int) -> Array:
    return np.random.default_rng(seed).integers(-1, 2, SHAPE).astype(np.float16)


@pytest.fixture(scope="module")
def library(gpu: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def by_groups(kernel: Kernel) -> Config:
        space = template_for(kernel, HOPPER).space(kernel, HOPPER)
        assert isinstance(space, Alternatives)
        return space.join(TEMPLATE, space.spaces[TEMPLATE].default)

    output = tmp_path_factory.mktemp("library") / "layers.so"
    compile_graph(api.optimize(layers(), HOPPER), HOPPER, output, by_groups)
    return output


def test_maps_follow_the_pointers_of_a_run(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run launches the recorded graph; arrays elsewhere on the GPU have it recorded again."""
    monkeypatch.setenv("EMULATED_CAPABILITY", "90")
    model = load(library)
    for seed, place in enumerate((np.asarray, np.asarray, OnGpu, OnGpu)):
        (expected,) = evaluate(layers(), [data(seed)])
        (found,) = model(place(data(seed)))
        np.testing.assert_allclose(found, expected, rtol=2e-3)


def convolutions(shape: tuple[int, ...]) -> Graph:
    """As of a residual network, with whole lines of channels."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("convolutions")
    x = g.input("x", shape)
    for filters, stride in ((128, 2), (128, 1)):
        weight = rng.standard_normal((filters, int(x.type.static_shape[1]), 3, 3)) / 24
        attrs = {"strides": (stride,) * 2, "padding": (1,) * 4}
        x = g.op("relu", g.op("conv2d", x, g.constant(weight.astype(np.float32)), **attrs))
    return g.build(g.op("reduce_mean", x, axes=(2, 3), keepdims=False))


@pytest.mark.parametrize("precision", ["fast", pytest.param("tf32", marks=pytest.mark.slow)])
def test_windows_are_tiles_of_blocks_of_channels(
    precision: Precision, gpu: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU with few multiprocessors, so that what they multiply takes long."""
    monkeypatch.setenv("EMULATED_CAPABILITY", "90")
    assert HOPPER.gpu is not None
    few = replace(HOPPER, gpu=replace(HOPPER.gpu, processors=2))
    source = convolutions((2, 64, 17, 15))
    graph = api.optimize(source, few, precision=precision)
    kernels = [Kernel.of(node) for node in graph.nodes if node.op == "fused"]
    _, second = (k for k in kernels if k.anchor is not None and k.anchor.op == "conv2d")
    assert "NCHW64c" in second.key or "NCHW32c" in second.key
    assert template_for(second, few).space(second, few).default["gathers"] == 0
    compile_graph(graph, few, tmp_path / "model.so")
    data = np.random.default_rng(1).standard_normal((2, 64, 17, 15)).astype(np.float32)
    (expected,) = evaluate(source, [data])
    (found,) = load(tmp_path / "model.so")(data)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-3)
