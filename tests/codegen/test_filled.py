"""Models whose channels fill no vectors, in memory that held anything before: no result depends on it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from c_programs import library, program, tool

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array
from tcomp.target.host import host_target
from tcomp.target.parse import parse_target
from tcomp.target.target import Target

WORDS = ("0", "1", "3f800000", "7f800000", "7fa00000", "ffffffff")
"""Zeros, subnormal numbers, ones, infinities, signalling and quiet NaN."""
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def weights(*shape: int) -> Array:
    rng = np.random.default_rng(shape)
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def image_network() -> Graph:
    g = GraphBuilder("image")
    padded = {"padding": (1,) * 4}
    x = g.input("image", (1, 3, 21, 21))
    narrow = g.op("relu", g.op("conv2d", x, g.constant(weights(13, 3, 3, 3)), strides=(2, 2), **padded))
    wide = g.op("conv2d", narrow, g.constant(weights(21, 13, 3, 3)), **padded)
    wide = g.op("relu", g.op("add", wide, g.constant(weights(21, 1, 1))))
    filtered = g.op("sigmoid", g.op("conv2d", wide, g.constant(weights(21, 1, 3, 3)), groups=21, **padded))
    grouped = g.op("conv2d", wide, g.constant(weights(21, 3, 3, 3)), groups=7, **padded)
    y = g.op("add", narrow, g.op("conv2d", filtered, g.constant(weights(13, 21, 1, 1))))
    pools = (g.op(op, y, kernel=(3, 3), strides=(2, 2), **padded) for op in ("max_pool2d", "avg_pool2d"))
    joined = g.op("concat", *pools, axis=1)
    larger = g.op("conv2d_transpose", joined, g.constant(weights(26, 7, 2, 2)), strides=(2, 2))
    mean = g.op("reduce_mean", joined, axes=(2, 3), keepdims=False)
    return g.build(
        g.op("softmax", g.op("matmul", mean, g.constant(weights(26, 11))), axis=1), larger, grouped
    )


def text_network() -> Graph:
    g = GraphBuilder("text")
    x = g.input("tokens", (1, 37, 30))

    def heads(scale: float) -> Array:
        return weights(30, 30) * np.float32(scale)

    query, key, value = (
        g.op(
            "transpose",
            g.op("reshape", g.op("matmul", x, g.constant(heads(scale))), shape=(1, 37, 3, 10)),
            axes=(0, 2, 1, 3),
        )
        for scale in (0.3, 1.0, 2.0)
    )
    scores = g.op("softmax", g.op("matmul", query, key, transpose_b=True), axis=3)
    rows = g.op("transpose", g.op("matmul", scores, value), axes=(0, 2, 1, 3))
    y = g.op("add", x, g.op("reshape", rows, shape=(1, 37, 30)))
    hidden = g.op("gelu", g.op("matmul", y, g.constant(weights(30, 57))))
    y = g.op("matmul", hidden, g.constant(weights(57, 30)))
    few = g.op("matmul", g.op("reshape", y, shape=(37, 30)), g.constant(weights(30, 3)))
    return g.build(y, few, g.op("reduce_max", y, axes=(2,)))


GRAPHS = {"image": image_network(), "text": text_network()}


def build(graph: Graph, target: Target, folder: Path) -> Path:
    library(graph, folder, target)
    return program("filled.c", folder, [folder / f"{graph.name}.so"])


def run(command: Sequence[str | Path], inputs: Sequence[Array]) -> bytes:
    data = b"".join(array.tobytes() for array in inputs)
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=300)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout


def inputs_of(graph: Graph) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(v.type.static_shape).astype(np.float32) for v in graph.inputs]


@pytest.mark.parametrize("name", GRAPHS)
def test_results_are_the_same_whatever_memory_held(name: str, tmp_path: Path) -> None:
    inputs = inputs_of(GRAPHS[name])
    command = build(GRAPHS[name], host_target(), tmp_path)
    found = {run([command, word], inputs) for word in WORDS}
    assert len(found) == 1
    expected = np.concatenate([y.ravel() for y in evaluate(GRAPHS[name], inputs)])
    np.testing.assert_allclose(np.frombuffer(found.pop(), np.float32), expected, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_valgrind_finds_no_use_of_memory_that_holds_nothing(name: str, tmp_path: Path) -> None:
    """Neither in branches and addresses nor in what is written as a result."""
    valgrind = tool("valgrind", "valgrind")
    command = build(GRAPHS[name], parse_target("x86-64-v3"), tmp_path)  # valgrind knows no AVX-512
    assert run([valgrind, "-q", "--error-exitcode=9", command], inputs_of(GRAPHS[name]))
