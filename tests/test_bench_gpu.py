"""The benchmark of whole models on a GPU, with a CPU in the GPU's place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from op_samples import arrays_of, check, graph_of_sample

from tcomp.errors import UnsupportedError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.op import OPS
from tcomp.target.host import host_target

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
        results.append(bench_gpu.bench(case, target, device, [], rounds=3, number=2, mode="max-autotune"))
        assert set(results[-1]["times"]) == {"torch", bench_gpu.REFERENCE, "untuned"}
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
