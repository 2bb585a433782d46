"""PyTorch beside kernels, in one process: the emulated GPU runs these, this CPU the former."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpu_check
import gpu_trials
from gpu_trials import TORCH, CheckRunner
from tcomp.target.target import TARGETS, Target
from tcomp.tuner.runner import Measure, Measured, Prepared, Raced, Rounds

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.emulated


class Event:
    """A moment of this CPU."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return (later.seconds - self.seconds) * 1e3


@pytest.fixture
def cpu_for_cuda(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """PyTorch's CUDA is this CPU; the list has whether tf32 was allowed when products ran."""
    allowed: list[bool] = []

    def here(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *size, device="cpu", **options: make(*size, **options)

    def noting(multiply: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*x: Any) -> Any:
            allowed.append(torch.backends.cuda.matmul.allow_tf32)
            return multiply(*x)

        return noted

    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "__matmul__", noting(torch.Tensor.__matmul__))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "empty", here(torch.empty))
    monkeypatch.setattr(torch, "ones", here(torch.ones))
    monkeypatch.setattr(gpu_trials, "_COLD_BYTES", 64)
    return allowed


CASES = {
    "float32": gpu_check.matmul(16, 24, 8, "float32"),
    "tf32": gpu_check.matmul(16, 24, 8, "tf32"),
    "bfloat16": gpu_check.matmul(16, 24, 8, "bfloat16"),
    "conv": gpu_check.conv(8, 8, 6, 3, 2, "float32"),
    "softmax": gpu_check.rows("softmax", (4, 40), "float32"),
    "causal": gpu_check.attention(2, 16, 16, "float32", causal=True),
}

PRECISIONS = {"tf32": "float32 rounded to tf32", "bfloat16": "bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_races_in_turns(name: str, gpu: Target, cpu_for_cuda: list[bool], tmp_path: Path) -> None:
    """The reference is PyTorch's in float32, and equals numpy's."""
    entry = gpu_check.entry_of(CASES[name], gpu)
    kernel = entry.task.kernel
    station = CheckRunner(with_torch=True).open(tmp_path, 1)
    data = station.data(kernel, 0)
    assert data.expected == ()
    prepared = Prepared(kernel.key, kernel, gpu, data)
    candidate = station.build(prepared, entry.default)
    measured = station.measure(candidate, Measure(60.0, float("inf")))
    assert isinstance(measured, Measured)
    assert measured.check is not None
    assert measured.check.max_error <= gpu_trials.TOLERANCE[CASES[name].dtype]
    assert measured.conditions["registers"]
    raced = station.race([candidate, station.build(prepared, TORCH)], Rounds(60.0, rounds=3))
    assert isinstance(raced, Raced)
    ours, theirs = raced.results
    assert ours.seconds.median > 0
    assert theirs.seconds.median > 0
    assert theirs.check is not None
    assert theirs.check.max_error < 0.02
    precision = PRECISIONS.get(name, "float32 without tf32")
    assert theirs.conditions["torch"] == f"PyTorch {torch.__version__} in {precision}"
    assert "torch" not in ours.conditions
    (expected,) = gpu_trials.reference(kernel, data.inputs)
    exact = station._reference(prepared)  # pyright: ignore
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-4)
    if name in ("float32", "tf32"):
        assert not cpu_for_cuda[0], "the reference is exact"
        assert cpu_for_cuda[-2] == (name == "tf32")


@pytest.mark.parametrize("name", ["float32", "tf32"])
def test_pytorch_rounds_in_all_its_runs(name: str, cpu_for_cuda: list[bool], tmp_path: Path) -> None:
    """Also behind its check, which computes the reference where no kernel was checked before."""
    gpu = TARGETS["cuda:sm_80"]
    kernel = gpu_check.entry_of(CASES[name], gpu).task.kernel
    station = CheckRunner(with_torch=True).open(tmp_path, 1)
    prepared = Prepared(kernel.key, kernel, gpu, station.data(kernel, 0))
    cpu_for_cuda.clear()  # What warms PyTorch up.
    raced = station.race([station.build(prepared, TORCH)], Rounds(60.0, rounds=2, round_seconds=0.0))
    assert isinstance(raced, Raced)
    *runs, exact, first, second, third, last = cpu_for_cuda
    assert runs
    assert not exact, "the reference"
    assert {*runs, first, second, third, last} == {name == "tf32"}


def test_pytorch_may_reserve_addresses(
    cpu_for_cuda: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A GPU's driver takes addresses for all memory that there is, which workers may not without a GPU."""
    limits: list[int] = []
    ones = torch.ones

    def noted(*size: int, **options: Any) -> Any:
        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
        return ones(*size, **options)

    monkeypatch.setattr(torch, "ones", noted)
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, most))
    try:
        CheckRunner(with_torch=True).open(tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))
    assert limits == [most]


def test_wrong_numbers_are_told(gpu: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = gpu_check.entry_of(CASES["float32"], gpu)
    kernel = entry.task.kernel
    station = CheckRunner(with_torch=False).open(tmp_path, 1)
    data = station.data(kernel, 0)
    wrong = Prepared(
        kernel.key, kernel, gpu, type(data)(data.inputs, (data.expected[0] + 1,), data.tolerance)
    )
    measured = station.measure(station.build(wrong, entry.default), Measure(60.0, float("inf")))
    assert not isinstance(measured, Measured)
    assert measured.status == "wrong"
