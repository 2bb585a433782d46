"""The script that checks a real GPU, on the emulated one and with small kernels."""

from __future__ import annotations

import pytest

import gpu_check
from tcomp.target.target import Target


@pytest.mark.slow
def test_measures_and_checks(gpu: Target) -> None:
    for case in (
        gpu_check.matmul(16, 24, 8, "float32"),
        gpu_check.rows("softmax", (4, 40), "float32"),
        gpu_check.attention(2, 16, 16, "float16"),
    ):
        row = gpu_check.measure(case, gpu, trials=1)
        assert row.problem == ""
        assert row.default is not None
        assert row.best is not None
        assert row.best <= row.default
        assert case.name in gpu_check.line(row)


@pytest.mark.slow
def test_tells_wrong_numbers(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    case = gpu_check.matmul(16, 24, 8, "float32")
    monkeypatch.setattr(gpu_check, "reference", lambda case, inputs: [inputs[0] @ inputs[1] + 1])
    assert "wrong by" in gpu_check.measure(case, gpu, trials=0).problem
