"""The benchmarks' machinery: workers that hold a runtime each, and the table made of their times."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import bench_cpu
import bench_instructions
import bench_kernels
import bench_searches
import compare_estimates
import compare_steps
import kernel_cycles
import trial_cost
from kernel_shapes import FIXED, KERNELS
from peers import Peer
from tcomp.codegen.artifact import compile_graph
from tcomp.relay.builder import GraphBuilder
from tcomp.runtime import load
from tcomp.target.host import host_target
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.transform.pipeline import optimize
from tcomp.tuner.lookup import Records
from tcomp.tuner.records import Check, Record, Times
from tcomp.tuner.task import Task

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


@pytest.mark.skipif(not bench_instructions.present(), reason="this CPU has no AVX-512")
def test_instructions_are_measured(tmp_path: Path) -> None:
    library = bench_instructions.build(tmp_path)
    for name in bench_instructions.present():
        library[name](1)


def test_steps_of_two_libraries_are_compared(tmp_path: Path) -> None:
    b = GraphBuilder()
    path = tmp_path / "sum.so"
    named = b.op("matmul", b.input("x", (4, 8)), b.constant(np.ones((8, 8), np.float32)), name="sum")
    compile_graph(optimize(b.build(named), host_target()), host_target(), path)
    first, second = compare_steps.least_times([load(path), load(path)], 0.0)
    (label,) = first
    assert "sum" in label
    assert first[label] > 0
    assert second.keys() == first.keys()
    assert compare_steps.lines({"a": 2e-6, "b": 3e-6, "c": 1e-6}, {"a": 4e-6}, 2) == [
        f"{'':9}       3.0  b",
        "      4.0       2.0  a",
    ]


@pytest.mark.parametrize("tag", kernel_cycles.TABLES)
def test_cycles_are_asked_of_llvm_mca(tag: str, tmp_path: Path) -> None:
    """The program is given the products as float32 ones, and its count is set against the ports' bound."""
    program = tmp_path / "llvm-mca"
    program.write_text(
        f"#!/bin/sh\ncat > {tmp_path}/code\necho \"$@\" > {tmp_path}/arguments\necho 'Total Cycles: 600'\n"
    )
    program.chmod(0o755)
    target = TARGETS[tag]
    instruction = kernel_cycles.INSTRUCTIONS[str(target.fast_dtype)]
    body = [f"{instruction} %zmm1, %zmm2, %zmm3", "vbroadcastss 4(%rax), %zmm1", "jne .LBB0_2"]
    loop = kernel_cycles.Loop.of(body, instruction, target, str(program))
    assert (loop.products, loop.others, loop.spills, loop.cycles) == (1, 2, 0, 3.0)
    assert loop.bound == 1 / kernel_cycles.PORTS[tag]
    expected = ["loop:", "vfmadd231ps %zmm1, %zmm2, %zmm3", "vmovups 4(%rax), %zmm1", "jne loop"]
    assert (tmp_path / "code").read_text().splitlines() == expected
    assert f"-mcpu={kernel_cycles.TABLES[tag]}" in (tmp_path / "arguments").read_text()


def test_estimates_are_added_up_over_a_model() -> None:
    b, target = GraphBuilder(), TARGETS["cortex-a76"]
    kernel = Kernel(b.build(b.op("matmul", b.input("x", (96, 256)), b.input("y", (256, 96)))))
    task = Task.of(kernel, target, weight=3)
    default = dict(task.space.default)
    check = Check(0.0, 1e-4)
    first = Record(
        task.key, task.label, target.name, target.isa, "simulated", 1, task.template, default, "ok",
        seconds=Times(2e-3, 2e-3, 0.0, 1), baseline=2e-3, check=check, simulated=True,
    )  # fmt: skip
    other = dict(next(iter(task.space.neighbours(default))))
    second = replace(first, config=other, seconds=Times(1e-3, 1e-3, 0.0, 1))
    row = compare_estimates.saved("m", [task], Records([first, second])).row()
    assert row == "| m | 6.00 ms | 3.00 ms | 0.500 | 1 of 1 |"
    row = compare_estimates.saved("m", [task], Records([first])).row()
    assert row == "| m | 6.00 ms | 6.00 ms | 1.000 | 0 of 1 |"
    with pytest.raises(ValueError, match="no estimate of matmul of m"):
        compare_estimates.saved("m", [task], Records([replace(first, check=None)]))


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


def test_forty_kernels_are_fixed() -> None:
    assert len(set(FIXED)) == 40
    assert set(FIXED) <= set(KERNELS)
    for name in FIXED:
        template_for(KERNELS[name](), host_target())


def test_knobs_are_changed_where_they_may_be() -> None:
    kernel, target = KERNELS["matmul 32x2048x2048"](), TARGETS["x86-64-v3"]
    knobs = ["unroll=2", "parts=4", "parts=1", "partial_sums=8", "tile_rows=99", "nonsense=1"]
    together = ["unroll=2,parts=4", "unroll=2,parts=1", "unroll=2,nonsense=1"]
    variants = bench_kernels.Variant.every("small", kernel, target, False, Records([]), [*knobs, *together])
    names = ["unroll=2", "parts=4", "unroll=2,parts=4", "unroll=2,parts=1"]
    assert [v.name for v in variants] == ["small", *(f"small {n}" for n in names)]
    assert (variants[3].config["unroll"], variants[3].config["parts"]) == (2, 4)


def test_a_trial_costs_time_in_all_its_parts() -> None:
    task = Task.of(KERNELS["matmul 8x8192x8"](), host_target())
    cost = trial_cost.measure([task], configs=1)
    assert cost.trials == 2
    assert set(cost.seconds) == set(trial_cost.PARTS)
    assert all(seconds > 0 for seconds in cost.seconds.values())


def test_a_search_has_reached_what_it_knew_first() -> None:
    found = bench_searches.Found(3, [(1.0, 5e-3), (2.0, 3e-3), (3.0, 2e-3)], 4.0, lambda number: 2e-3)
    assert bench_searches.reached(found, 3e-3) == 2.0
    assert bench_searches.reached(found, 1e-3) is None


@pytest.mark.slow
def test_searches_are_compared() -> None:
    task = Task.of(KERNELS["matmul 8x8192x8"](), host_target())
    results = bench_searches.compare(task, ["tcomp", "random"], trials=2)
    assert [r["trials"] for r in results] == [2, 2]
    assert all(r["best"] < 3 * r["curve"][-1][1] for r in results)
    assert "| tcomp | 2 |" in bench_searches.markdown(results)
