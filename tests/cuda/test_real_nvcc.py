"""What the real compiler says of kernels, which the emulated GPU's is not."""

from __future__ import annotations

import pytest
from cuda_kernels import KERNELS

from tcomp.codegen.cuda.jit import build_cuda
from tcomp.codegen.cuda.nvcc import find_nvcc
from tcomp.target.parse import parse_target
from tcomp.tensor.template import schedule


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.usefixtures("real_nvcc")
def test_defaults_compile_without_spills(name: str, arch: str) -> None:
    _compile(name, arch)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_the_toolkit_takes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    monkeypatch.setenv("CUDACXX", nvcc.path)
    _compile(name, "sm_90a")


def _compile(name: str, arch: str) -> None:
    target = parse_target(f"cuda:{arch}")
    kernel = KERNELS[name]
    runner = build_cuda(kernel, schedule(kernel, target), target)
    assert runner.cubin.resources.keys() == {one.symbol for one in runner.code.launches}
    runner.require_no_spills()
