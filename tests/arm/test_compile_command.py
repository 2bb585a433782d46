"""`tcomp compile` for ARM cores, in every type: from a file of a model to numbers under qemu."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from quantized_graphs import convolutions
from test_emulated import run, tools
from test_emulated_precision import network

from tcomp.cli import main
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.printer import save_graph
from tcomp.relay.types import Array
from tcomp.rounding import relative_error
from tcomp.target.parse import parse_target


def compiled(graph: Graph, target: str, folder: Path, *options: str) -> Array:
    """What the library makes of random numbers, beside what the graph means."""
    tools(parse_target(target))
    save_graph(graph, folder / "model.relay")
    library = folder / "libmodel.so"
    command = ["compile", str(folder / "model.relay"), "--target", target, "-o", str(library), *options]
    assert main(command) == 0
    (x,) = graph.inputs
    array = np.random.default_rng(1).standard_normal(x.type.static_shape).astype(np.float32)
    result = run(library, parse_target(target), [array], folder)
    assert (result.returncode, result.stderr) == (0, b"")
    (expected,) = evaluate(graph, [array])
    found = np.frombuffer(result.stdout, expected.dtype).reshape(expected.shape)
    return np.stack([found, expected])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "most"),
    [("cortex-a55", 5e-3), ("cortex-a78", 5e-3), ("cortex-x2", 2e-2), ("neoverse-v1", 2e-2)],
)
def test_fast(target: str, most: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, expected = compiled(network(), target, tmp_path, "--precision", "fast")
    assert str(parse_target(target).fast_dtype) in capsys.readouterr().out
    assert 1e-5 < relative_error(found, expected) < most


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cortex-a53", "cortex-a55", "cortex-a76", "cortex-x2", "neoverse-v1"])
def test_quantized(target: str, tmp_path: Path) -> None:
    found, expected = compiled(convolutions("uint8"), target, tmp_path).astype(np.int32)
    steps = np.abs(found - expected)
    assert steps.max() <= 1
    assert steps.mean() < 0.01


@pytest.mark.slow
def test_a_core_without_matrix_instructions_is_refused(tmp_path: Path) -> None:
    compiled(convolutions("int8"), "cortex-x2", tmp_path)
    _, emulator = tools(parse_target("cortex-x2"))
    command = [emulator[0], "-cpu", "neoverse-n1", *emulator[1:], tmp_path / "program"]
    data = np.zeros((1, 8, 9, 9), np.float32).tobytes()
    result = subprocess.run(command, input=data, capture_output=True, check=False)
    assert result.returncode == 1
    assert b"this CPU has no bf16" in result.stderr or b"this CPU has no i8mm" in result.stderr
