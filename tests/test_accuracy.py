"""Precision `fast` within a tolerance: what is compared, what is taken back, what is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tcomp
from tcomp.accuracy import relative_error, worst_kernels
from tcomp.cli import main
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.printer import save_graph
from tcomp.runtime import load
from tcomp.target.host import host_target
from tcomp.target.target import TARGETS
from tcomp.transform.lower_precision import LowerPrecision
from tcomp.transform.pipeline import optimize

needs_fp16 = pytest.mark.skipif(not host_target().has("avx512fp16"), reason="this CPU has no AVX512-FP16")


def network(loud: float = 1.0) -> Graph:
    """Three products between norms; what the second one multiplies is `loud` times larger."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    ones, zeros = builder.constant(np.ones(32, np.float32)), builder.constant(np.zeros(32, np.float32))
    x = builder.op("relu", builder.op("layer_norm", builder.input("x", (16, 32)), ones, zeros, axis=1))
    for name in ("first", "loud", "third"):
        weight = rng.standard_normal((32, 32)).astype(np.float32)
        x = builder.op("relu", builder.op("matmul", x, builder.constant(weight), name=name))
        scale = loud if name == "first" else 1 / loud if name == "loud" else 1.0
        x = builder.op("mul", x, builder.constant(np.float32(scale)))
    return builder.build(builder.op("softmax", x, axis=1))


def run(library: Path) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(5).standard_normal((16, 32)).astype(np.float32)
    with load(library) as model:
        (found,) = model(x)
    return found, x


@needs_fp16
def test_an_accurate_model_keeps_nothing(tmp_path: Path) -> None:
    compiled = tcomp.compile(network(), tmp_path / "m.so", precision="fast")
    assert compiled.precision.startswith("precision fast: 3 of 3 products in float16; error of ")
    found, x = run(tmp_path / "m.so")
    (expected,) = evaluate(network(), [x])
    assert 0 < relative_error(found, expected) < 2e-2


@pytest.mark.slow
@needs_fp16
def test_a_kernel_that_overflows_goes_back_to_float32(tmp_path: Path) -> None:
    graph = network(loud=1e6)
    compiled = tcomp.compile(graph, tmp_path / "m.so", precision="fast")
    assert "kept in float32 for accuracy" in compiled.precision
    found, x = run(tmp_path / "m.so")
    (expected,) = evaluate(graph, [x])
    assert relative_error(found, expected) < 2e-2


@pytest.mark.slow
@needs_fp16
def test_no_tolerance_means_float32(tmp_path: Path) -> None:
    compiled = tcomp.compile(network(), tmp_path / "m.so", precision="fast", tolerance=0.0)
    assert compiled.precision.startswith("precision fast: 0 of 3 products in float16; 3 kernels kept")


def test_kernels_that_write_or_read_infinities_rank_first() -> None:
    # The factor is folded into the weights of `loud`, whose outputs are beyond float16.
    exact = optimize(network(loud=1e6), TARGETS["x86-64-v4"])
    x = np.random.default_rng(5).standard_normal((16, 32)).astype(np.float32)
    ranking = worst_kernels(exact, LowerPrecision().run(exact), [x])
    assert set(ranking[:2]) == {"loud", "third"}
    assert set(ranking) == {"first", "loud", "third"}


def test_other_targets_are_not_checked_here(tmp_path: Path) -> None:
    compiled = tcomp.compile(network(), tmp_path / "m.so", "x86-64-v3", precision="fast")
    assert "`x86-64-v3` multiplies 16-bit floats no faster; all stays in float32" in compiled.precision


@pytest.mark.slow
@needs_fp16
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, library, inputs = tmp_path / "m.relay", tmp_path / "m.so", tmp_path / "in.npz"
    save_graph(network(), model)
    np.savez(inputs, x=np.ones((16, 32), np.float32))
    fast = ["compile", str(model), "--precision", "fast", "-o", str(library)]
    assert main([*fast, "--check-input", str(inputs), "--tolerance", "0.05", "--json"]) == 0
    assert "(allowed 5.00%)" in json.loads(capsys.readouterr().out)["precision"]
    assert main(["verify", str(model), "--precision", "fast", "--against", "reference"]) == 0
    assert (
        main(["verify", str(model), "--precision", "fast", "--against", "reference", "--rtol", "1e-6"]) == 1
    )
    assert "pass `lower-precision` changes the outputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, 4.0], [1.0, 2.0], 1.0),
        ([1.0, np.inf], [1.0, 2.0], np.inf),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([0.0], [0.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_relative_error(actual: list[float], expected: list[float], error: float) -> None:
    assert relative_error(np.array(actual), np.array(expected)) == error
    assert relative_error(np.array([1, 2]), np.array([1, 3])) == 0.5
