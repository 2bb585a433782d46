"""The script that checks a real GPU, on the emulated one and with small kernels."""

from __future__ import annotations

from typing import Any

import pytest

import gpu_check
from tcomp.errors import BuildError, KernelError, TcompError
from tcomp.target.target import Target
from tcomp.tensor.knobs import Alternatives


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
        assert row.best > 0
        assert case.name in gpu_check.line(row)
        assert row.algorithms[0] in gpu_check.line(row)


@pytest.mark.slow
def test_names_the_algorithms_of_a_convolution(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    case = gpu_check.conv(16, 16, 8, 3, 1, "float32")
    space = gpu_check.template_for(case.kernel, gpu).space(case.kernel, gpu)
    assert isinstance(space, Alternatives)
    assert list(space.spaces) == ["conv_cuda", "conv_winograd_cuda"]
    configs = [space.join(name, own.default) for name, own in space.spaces.items()]
    monkeypatch.setattr(gpu_check, "configs", lambda kernel, target, trials: configs)
    times = iter((2e-6, 1e-6, *[1e-6] * gpu_check.ROUNDS))
    monkeypatch.setattr(gpu_check, "timed", lambda runner, arguments: next(times))
    row = gpu_check.measure(case, gpu, trials=1)
    assert (row.problem, row.default, row.best) == ("", 2e-6, 1e-6)
    assert row.algorithms == ("conv_cuda@1", "conv_winograd_cuda@1")
    assert "conv_cuda@1, conv_winograd_cuda@1" in gpu_check.line(row)


@pytest.mark.slow
def test_tells_wrong_numbers(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    case = gpu_check.matmul(16, 24, 8, "float32")
    monkeypatch.setattr(gpu_check, "reference", lambda case, inputs: [inputs[0] @ inputs[1] + 1])
    assert "wrong by" in gpu_check.measure(case, gpu, trials=0).problem


@pytest.mark.slow
def test_products_rounded_to_tf32(gpu: Target) -> None:
    row = gpu_check.measure(gpu_check.matmul(16, 24, 8, "tf32"), gpu, trials=0)
    assert (row.problem, row.configs) == ("", 1)


@pytest.mark.slow
def test_stops_at_the_end_of_its_time(gpu: Target) -> None:
    """The default is timed in any case."""
    row = gpu_check.measure(gpu_check.matmul(16, 24, 8, "bfloat16"), gpu, trials=8, seconds=0.0)
    assert (row.problem, row.configs) == ("", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("raised", "said"), [(KernelError, "broke off"), (BuildError, "")])
def test_tells_kernels_that_break_off(
    raised: type[TcompError], said: str, gpu: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of random configs that spill."""
    checked, runs = gpu_check.checked, iter((False, True))

    def check(*arguments: Any) -> tuple[float, float]:
        if next(runs):
            raise raised("broke off")
        return checked(*arguments)

    monkeypatch.setattr(gpu_check, "checked", check)
    row = gpu_check.measure(gpu_check.matmul(16, 24, 8, "float32"), gpu, trials=1)
    assert row.configs == 1
    assert row.problem.startswith(said)
    assert bool(row.problem) == bool(said)


def test_means_are_beside_their_goals() -> None:
    def row(kind: str, best: float | None, torch: float | None) -> gpu_check.Row:
        return gpu_check.Row(kind, "k", best, best, torch, None, 1.0, 0.5, 1, ("a",))

    found = [row("attention", 1e-6, 4e-6), row("attention", 1e-6, 1e-6), row("rows", None, 1e-6)]
    (mean,) = gpu_check.means(found).splitlines()
    assert mean.startswith("attention")
    assert "2.00 of PyTorch's speed (should be 1.00; least 1.00)" in mean
