"""What the real compiler says of kernels, which the emulated GPU's is not."""

from __future__ import annotations

import pytest
from cuda_kernels import KERNELS

from tcomp.codegen.cuda.jit import build_cuda
from tcomp.codegen.cuda.nvcc import find_nvcc
from tcomp.relay.builder import GraphBuilder
from tcomp.target.parse import parse_target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.usefixtures("real_compiler")
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
    runner = build_cuda(KERNELS[name], schedule(KERNELS[name], target), target)
    assert runner.cubin.resources.keys() == {one.symbol for one in runner.code.launches}
    runner.require_no_spills()


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
def test_nothing_spills_for_the_sake_of_another_block() -> None:
    """A product of two rows, of which ptxas left 40 registers and spilled two."""
    target = parse_target("cuda:sm_90a")
    g = GraphBuilder()
    x, weights = g.input("x", (2, 256), "float16"), g.input("weights", (256, 10), "float16")
    sums = g.op("matmul", x, weights, out_dtype="float32")
    product = Kernel(g.build(g.op("add", sums, g.input("bias", (10,)))), frozenset((1, 2)))
    build_cuda(product, schedule(product, target), target).require_no_spills()
