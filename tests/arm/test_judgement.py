"""Scripts that judge ARM code without a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_emulated import network, tools

import bench_arm
import count_arm
import count_arm_peers
from kernel_shapes import KERNELS
from tcomp.errors import BuildError
from tcomp.relay.evaluate import evaluate
from tcomp.target.parse import parse_target

A76 = parse_target("cortex-a76")


@pytest.mark.slow
def test_instructions_of_a_model_are_counted(tmp_path: Path) -> None:
    tools(A76)
    counts: list[int] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        graph = network()
        inputs = count_arm.sample_inputs(graph)
        report, found, total = count_arm.count(graph, A76, folder, inputs)
        counts.append(sum(found.values()))
        (expected,) = evaluate(graph, [inputs[value.name] for value in graph.inputs])
        assert total == pytest.approx(float(np.abs(expected).sum(dtype=np.float64)), rel=1e-4)
    assert counts[0] == counts[1]
    assert 0.3 < counts[0] / count_arm.products(report, A76) < 3, "Winograd multiplies less than it counts"
    assert found[""] < 0.1 * counts[0], "kernels are found by their names"


@pytest.mark.slow
def test_instructions_of_another_runtime_are_counted() -> None:
    if not (count_arm_peers.FOLDER / "site" / "onnxruntime").exists():
        pytest.skip("run `python scripts/arm64_python.py --peers`")
    peers = count_arm_peers.Peers(A76, count_arm_peers.FOLDER, None)
    name, own, other, absent = count_arm_peers.row("mtcnn_pnet", A76, peers, ["onnxruntime", "ncnn"])
    assert name == "mtcnn_pnet"
    assert 0.5 < float(own) < float(other) < 20, "Winograd multiplies less than it counts"
    assert absent == "(no --peer-python)"


def test_hot_loops_are_judged() -> None:
    kernel = KERNELS["matmul 1024x1024x1024"]()
    try:
        row = bench_arm.row(kernel, 3, A76, None)
    except BuildError as error:
        pytest.skip(str(error))
    assert row.cost is not None
    assert row.cost.of_peak(A76) > 0.9
    assert row.cells(A76)[1] == "3"
    assert row.cells(A76)[-1] == "0"
