"""The benchmark of whole models on a GPU, with a CPU in the GPU's place."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from op_samples import arrays_of, check, graph_of_sample

from gpu_script import OutOfTime
from tcomp.errors import KernelError, UnsupportedError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.op import OPS
from tcomp.target.host import host_target
from tcomp.target.target import TARGETS

torch = pytest.importorskip("torch")
import bench_gpu  # noqa: E402
import torch_graph  # noqa: E402


@pytest.mark.parametrize("name", torch_graph.OPERATORS)
def test_operator_in_torch_equals_the_reference(name: str) -> None:
    known = 0
    for sample in OPS[name].samples:
        graph, arrays = graph_of_sample(OPS[name], sample), arrays_of(OPS[name], sample)
        types = {value.dtype for value in (*graph.inputs, *graph.outputs)}
        if not types <= {"float32", "int64", "bool"}:
            continue
        if name == "gather" and (arrays[1].min() < 0 or arrays[1].max() >= min(arrays[0].shape)):
            continue
        try:
            module = torch_graph.TorchGraph(graph)
        except UnsupportedError:
            continue
        known += 1
        check([y.numpy() for y in module(*map(torch.from_numpy, arrays))], evaluate(graph, arrays), sample)
    assert known


@pytest.mark.parametrize("hidden", [float("-inf"), -3.4028234663852886e38, -1e4])
def test_masks_of_truth_values_in_torch(hidden: float) -> None:
    """Scores are large; a row sees nothing where hidden ones are numbers."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, 6, 8)).astype(np.float32) for _ in range(3))
    mask = rng.random((2, 6, 6)) < 0.5
    mask[:, :, 0] = True
    mask[0, 0] = hidden == float("-inf")
    g = GraphBuilder("g")
    names = ("query", "key", "value", "mask")
    arrays = (query * 30, key, value, mask)
    inputs = [g.input(n, a.shape, str(a.dtype)) for n, a in zip(names, arrays, strict=True)]
    graph = g.build(g.op("attention", *inputs, scale=1.0, hidden=hidden))
    (found,) = torch_graph.TorchGraph(graph)(*map(torch.from_numpy, arrays))
    (expected,) = evaluate(graph, arrays)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_unknown_operator_is_named() -> None:
    g = GraphBuilder("g")
    with pytest.raises(UnsupportedError, match="`erf` has no PyTorch form"):
        torch_graph.TorchGraph(g.build(g.op("erf", g.input("x", (4,)))))


def test_model_beside_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 is wider on a CPU without it; the machinery is the same."""
    modes: list[str] = []

    def compile_(module: Callable[..., object], mode: str) -> Callable[..., object]:
        modes.append(mode)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    rng = np.random.default_rng(0)
    g = GraphBuilder("network")
    x = g.input("x", (1, 4, 8, 8))
    weight = g.constant(rng.standard_normal((8, 4, 3, 3)).astype(np.float32))
    body = g.op("conv2d", x, weight, strides=(1, 1), padding=(0, 1, 1, 1), dilation=(1, 1))
    graph = g.build(g.op("relu", g.op("add", body, g.constant(np.ones((1, 8, 1, 1), np.float32)))))
    inputs = {"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    results = []
    for precision in ("float32", "float16"):
        case = bench_gpu.Case("network", graph, inputs, precision)
        device, target = torch.device("cpu"), host_target()
        alone, beside = bench_gpu.bench(case, target, device, [], rounds=3, number=2, mode="max-autotune")
        assert set(alone["times"]) == {"torch", "untuned"}
        assert set(beside["times"]) == {"torch", bench_gpu.REFERENCE, "untuned"}
        results.append(beside)
        assert all(len(t) == 3 and min(t) > 0 for t in results[-1]["times"].values())
    assert modes == ["max-autotune"] * 2
    assert max(results[0]["errors"].values()) < 1e-5
    assert 1e-5 < results[1]["errors"][bench_gpu.REFERENCE] < 1e-2
    table = bench_gpu.table(results)
    assert "| network | float16 |" in table
    assert "tcomp's geometric mean: " in table


def test_table_has_ratios_to_the_compiler() -> None:
    times = {bench_gpu.REFERENCE: [2e-6, 4e-6, 2e-6], "torch": [4e-6, 4e-6, 6e-6], "untuned": [1e-6] * 3}
    errors = {bench_gpu.REFERENCE: 1e-3, "torch": 2e-3, "untuned": 3e-3}
    result = {"model": "m", "precision": "float16", "records": "1/2", "times": times, "errors": errors}
    *_, row, _, mean = bench_gpu.table([result]).splitlines()
    ratios = "**2.00** (1.00-3.00; 2.0e-03) | **0.50** (0.25-0.50; 3.0e-03) | -"
    assert row == f"| m | float16 | 2 us (1.0e-03) | {ratios} | 1/2 |"
    assert mean == "tcomp's geometric mean: 0.50"


def result_of(name: str, *runs: str) -> bench_gpu.Result:
    times = {run: [2e-6] * 3 for run in runs}
    return {
        "model": name,
        "precision": "float16",
        "records": "1/2",
        "times": times,
        "errors": dict.fromkeys(runs, 1e-3),
    }


def test_rows_without_the_compiler_have_times() -> None:
    *_, row, _, mean = bench_gpu.table([result_of("m", "torch", "untuned")]).splitlines()
    assert row == "| m | float16 | - | 2 us (1.0e-03) | 2 us (1.0e-03) | - | 1/2 |"
    assert mean == "tcomp's geometric mean: none, as torch.compile has no times"


def fragile_stages(request: bench_gpu.Request) -> Iterator[bench_gpu.Result]:
    """Of models called by what they do in the second stage."""
    yield result_of(request.model, "torch", "untuned")
    if request.model == "breaks off":
        raise KernelError("an illegal memory access")
    if request.model == "ends":
        os.abort()
    if request.model == "searches":
        time.sleep(1000)
    yield result_of(request.model, "torch", "untuned", bench_gpu.REFERENCE)


def fragile_work() -> None:
    bench_gpu.work(fragile_stages)


def request_for(model: str) -> bench_gpu.Request:
    return bench_gpu.Request(model, "float16", [], 1, 1, "max-autotune")


@pytest.mark.slow
def test_what_fails_costs_its_own_row_and_the_end_nothing_that_was_found() -> None:
    found: list[bench_gpu.Result] = []
    requests = [request_for(name) for name in ("breaks off", "ends", "works")]
    entry = "test_bench_gpu.fragile_work"
    problems: list[str] = []
    bench_gpu.measure(requests, time.monotonic() + 600, found.append, problems.append, entry)
    assert [len(r["times"]) for r in found] == [2, 2, 2, 3]
    assert problems[0] == "breaks off, float16: run_error: KernelError: an illegal memory access"
    assert problems[1].startswith("ends, float16: crash: killed by SIGABRT")
    assert len(problems) == 2
    end = time.monotonic() + 30
    with pytest.raises(OutOfTime):
        bench_gpu.measure([request_for("searches")], end, found.append, problems.append, entry)
    assert 0 <= time.monotonic() - end < 5
    assert [len(r["times"]) for r in found] == [2, 2, 2, 3, 2]


def test_all_that_was_found_is_written_and_printed_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measure(
        requests: Sequence[bench_gpu.Request],
        end: float,
        changed: Callable[[bench_gpu.Result], None],
        failed: Callable[[str], None],
    ) -> None:
        assert [(r.model, r.precision) for r in requests] == [
            ("resnet50", "float16"),
            ("resnet50", "float32"),
        ]
        assert 0 < end - time.monotonic() <= 40
        changed(result_of("resnet50", "torch", "untuned"))
        failed("resnet50, float32: crash")
        raise OutOfTime

    monkeypatch.setattr(bench_gpu, "gpu_here", lambda: TARGETS["cuda:sm_80"])
    monkeypatch.setattr(bench_gpu, "measure", measure)
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "resnet50", "--seconds", "40", "--json", str(file)])
    assert bench_gpu.main() == 1
    assert json.loads(file.read_text()) == [result_of("resnet50", "torch", "untuned")]
    said = capsys.readouterr().out
    assert said.startswith("resnet50, float16: torch 2 us (1.0e-03), untuned 2 us")
    assert said.index("| resnet50 | float16 | - |") > said.index("out of time")
