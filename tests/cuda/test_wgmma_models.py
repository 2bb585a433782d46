"""A library whose kernels have maps of tensors: of a caller's, of the arena's, of weights."""

from __future__ import annotations

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
from tcomp.tensor.template import template_for

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
    graph = api.optimize(layers(), HOPPER)
    for kernel in (Kernel.of(node) for node in graph.nodes if node.op == "fused"):
        template = template_for(kernel, HOPPER)
        assert template.id_of(template.space(kernel, HOPPER).default).startswith(TEMPLATE)
    output = tmp_path_factory.mktemp("library") / "layers.so"
    compile_graph(graph, HOPPER, output)
    return output


def test_maps_follow_the_pointers_of_a_run(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run launches the recorded graph; arrays elsewhere on the GPU have it recorded again."""
    monkeypatch.setenv("EMULATED_CAPABILITY", "90")
    model = load(library)
    for seed, place in enumerate((np.asarray, np.asarray, OnGpu, OnGpu)):
        (expected,) = evaluate(layers(), [data(seed)])
        (found,) = model(place(data(seed)))
        np.testing.assert_allclose(found, expected, rtol=2e-3)
