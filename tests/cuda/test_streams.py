"""Runs in streams of the caller's. The emulated GPU works when somebody waits for it, not before."""

from __future__ import annotations

import subprocess
from ctypes import c_size_t, c_void_p
from pathlib import Path

import numpy as np
import pytest
from device_arrays import OnGpu, Stream, page_locked

from tcomp import api
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.toolchain import native_toolchain
from tcomp.errors import ArtifactError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.types import Array
from tcomp.runtime import load
from tcomp.runtime.model import Model
from tcomp.target.cuda_driver import driver
from tcomp.target.target import Target

pytestmark = pytest.mark.emulated

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
NOT_YET = float(np.float32(7))


def classifier() -> Graph:
    """Two steps, so that a tensor is in the arena."""
    g = GraphBuilder("classifier")
    weights = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    return g.build(g.op("softmax", g.op("matmul", g.input("x", (4, 12)), g.constant(weights)), axis=1))


def data(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((4, 12)).astype(np.float32)


def expected(seed: int) -> Array:
    return evaluate(classifier(), [data(seed)])[0]


def empty() -> Array:
    return np.full((4, 8), NOT_YET, np.float32)


@pytest.fixture(scope="module")
def path(gpu: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("streams") / "classifier.so"
    compile_graph(api.optimize(classifier(), gpu), gpu, output)
    return output


@pytest.fixture
def model(path: Path) -> Model:
    return load(path)


def test_a_run_in_a_stream_is_not_waited_for(model: Model) -> None:
    stream, x, y = Stream(), OnGpu(np.zeros((4, 12), np.float32)), OnGpu(empty())
    place, source = c_void_p(x.pointer), data(1)
    size = c_size_t(source.nbytes)
    driver().call("cuMemcpyHtoDAsync_v2", place, c_void_p(source.ctypes.data), size, stream.handle)
    model.enqueue([x], [y], int(stream))
    np.testing.assert_array_equal(y.read(), NOT_YET)
    stream.wait()
    np.testing.assert_allclose(y.read(), expected(1), **TOLERANCE)


def test_the_default_stream(model: Model) -> None:
    x, y = OnGpu(data(1)), OnGpu(empty())
    model.enqueue([x], [y], 0)
    driver().call("cuStreamSynchronize", None)
    np.testing.assert_allclose(y.read(), expected(1), **TOLERANCE)


def test_runs_of_a_context_take_turns_in_all_streams(model: Model) -> None:
    first, second = Stream(), Stream()
    y, z = OnGpu(empty()), OnGpu(empty())
    inputs = OnGpu(data(1)), OnGpu(data(2))
    model.enqueue([inputs[0]], [y], int(first))
    model.enqueue([inputs[1]], [z], int(second))
    second.wait()  # It has waited for the first.
    np.testing.assert_allclose(y.read(), expected(1), **TOLERANCE)
    np.testing.assert_allclose(z.read(), expected(2), **TOLERANCE)
    model.enqueue([inputs[0]], [z], int(first))
    (found,) = model(data(3))
    np.testing.assert_allclose(found, expected(3), **TOLERANCE)
    np.testing.assert_allclose(z.read(), expected(1), **TOLERANCE)


def test_more_sets_of_tensors_than_graphs_are_kept(model: Model) -> None:
    """The emulated GPU ends the process where a graph is destroyed before its launch has ended."""
    stream = Stream()
    tensors = [(OnGpu(data(seed)), OnGpu(empty())) for seed in range(6)]
    for x, y in tensors * 2:
        model.enqueue([x], [y], int(stream))
    stream.wait()
    for seed, (_, y) in enumerate(tensors):
        np.testing.assert_allclose(y.read(), expected(seed), **TOLERANCE)


def test_page_locked_memory_is_copied_in_the_stream(model: Model) -> None:
    stream, x, y = Stream(), page_locked(data(1)), page_locked(empty())
    model.enqueue([x], [y], int(stream))
    np.testing.assert_array_equal(y, NOT_YET)
    x[...] = data(2)  # It is read when its turn has come.
    stream.wait()
    np.testing.assert_allclose(y, expected(2), **TOLERANCE)
    model.run_into([data(3)], [y])
    np.testing.assert_allclose(y, expected(3), **TOLERANCE)


def test_refuses_what_cannot_be_read_later(model: Model) -> None:
    stream, x, y = Stream(), OnGpu(data(1)), OnGpu(empty())
    with pytest.raises(ArtifactError, match="x is in pageable memory of the CPU; a run in a stream needs it"):
        model.enqueue([data(1)], [y], int(stream))
    driver().call("cuStreamBeginCapture_v2", stream.handle, 2)
    with pytest.raises(ArtifactError, match="the stream is being captured; a run is a graph of its own"):
        model.enqueue([x], [y], int(stream))
    np.testing.assert_allclose(model(data(1))[0], expected(1), **TOLERANCE)


def test_a_large_input_is_copied_in_pieces(gpu: Target, tmp_path: Path) -> None:
    g = GraphBuilder("large")
    graph = g.build(g.op("relu", g.input("x", (3, 400, 300))))
    compile_graph(api.optimize(graph, gpu), gpu, tmp_path / "large.so")
    model = load(tmp_path / "large.so")
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((3, 400, 300)).astype(np.float32)
        np.testing.assert_array_equal(model(x)[0], np.maximum(x, 0))


def branches() -> Graph:
    """A block as of Inception: four ways of small convolutions, joined, and a way around them."""
    g, rng = GraphBuilder("branches"), np.random.default_rng(0)

    def conv(x: Value, kernel: int) -> Value:
        weight = (rng.standard_normal((8, 8, kernel, kernel)) / (8 * kernel)).astype(np.float32)
        return g.op("relu", g.op("conv2d", x, g.constant(weight), padding=(kernel // 2,) * 4))

    x = conv(g.input("x", (1, 8, 5, 6)), 1)
    pooled = g.op("max_pool2d", x, kernel=(3, 3), padding=(1,) * 4)
    joined = g.op("concat", conv(x, 1), conv(conv(x, 1), 3), conv(pooled, 1), axis=1)
    return g.build(g.op("concat", g.op("exp", joined), x, axis=1))


def test_branches_are_parts_of_a_graph_side_by_side(gpu: Target, tmp_path: Path) -> None:
    """The emulated GPU does what was recorded last first, where nothing orders it."""
    report = compile_graph(api.optimize(branches(), gpu), gpu, tmp_path / "branches.so")
    assert report.program.streams > 1
    model = load(tmp_path / "branches.so")
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((1, 8, 5, 6)).astype(np.float32)
        np.testing.assert_allclose(model(x)[0], evaluate(branches(), [x])[0], **TOLERANCE)
    assert all(step.seconds > 0 for step in model.profile(x))


def test_in_c(path: Path, tmp_path: Path) -> None:
    source, program = Path(__file__).with_name("enqueue.c"), tmp_path / "program"
    command = [*native_toolchain().command, f"-I{path.parent}", source, path, "-o", program]
    subprocess.run([*command, "-ldl", f"-Wl,-rpath,{path.parent}"], check=True)
    done = subprocess.run([program], input=data(1).tobytes(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    found = np.frombuffer(done.stdout, np.float32).reshape(4, 8)
    np.testing.assert_allclose(found, expected(1), **TOLERANCE)
