"""The benchmarks' machinery: workers that hold a runtime each, and the table made of their times."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import bench_cpu
import bench_instructions
from peers import Peer
from tcomp.target.host import host_target

RESULT = {
    "model": "m",
    "threads": 2,
    "times": {"onnxruntime": [2.0, 4.0, 2.0], "ncnn": [3.0, 6.0, 3.0], "tuned": [1.0, 1.0, 1.0]},
    "absent": {"openvino": "ImportError: not installed"},
    "tuned": 3,
    "kernels": 4,
    "compile_seconds": 1.5,
    "arena_over_bound": 1.0,
}


@pytest.mark.skipif(host_target().fast_dtype is None, reason="needs AVX512-FP16")
def test_instructions_are_measured(tmp_path: Path) -> None:
    library = bench_instructions.build(tmp_path)
    for name in bench_instructions.PRODUCTS:
        library[name](1)


def test_ratios_are_taken_round_by_round() -> None:
    assert bench_cpu.ratios(RESULT, "tuned") == [0.5, 0.25, 0.5]


def test_table_and_picture_show_every_runtime() -> None:
    table, picture = bench_cpu.table([RESULT]), bench_cpu.picture([RESULT])
    assert (
        "| m | 2 | 2000.0 ms | **1.50** (1.50-1.50) | **0.50** (0.25-0.50) | 3/4 | 1.5 s | 1.000 |" in table
    )
    assert "openvino does not run m: ImportError: not installed" in table
    assert "1.50 ncnn" in picture
    assert "0.50 tuned" in picture


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    path, inputs = tmp_path / "model.onnx", tmp_path / "inputs.npz"
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 17]> m (float[1, 8] x) => (float[1, 8] y) { y = Relu (x) }'
        ),
        path,
    )
    np.savez(inputs, x=np.ones((1, 8), np.float32))
    return path, inputs


def test_worker_times_a_model(model: tuple[Path, Path]) -> None:
    with closing(Peer("onnxruntime", *model, 1, sys.executable)) as peer:
        assert not peer.absent
        assert 0 < peer.seconds(0.01) < 1


def test_worker_says_why_a_runtime_is_absent(model: tuple[Path, Path]) -> None:
    path, inputs = model
    path.write_bytes(b"no model")
    with closing(Peer("onnxruntime", path, inputs, 1, sys.executable)) as peer:
        assert "ONNX Runtime cannot run" in peer.absent
