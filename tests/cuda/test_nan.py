"""NaN goes through maxima and minima on GPUs, as it does on CPUs."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.cuda.jit import build_cuda
from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_relu_keeps_nan(dtype: str, gpu: Target) -> None:
    g = GraphBuilder("relu")
    graph = g.build(g.op("relu", g.input("x", (4, 8), dtype)))
    x = np.linspace(-1, 1, 32).reshape(4, 8).astype(dtype)
    x[0, 0] = x[3, 7] = np.nan
    (found,) = build_kernel(Kernel(graph), gpu)([x])
    np.testing.assert_array_equal(found, evaluate(graph, [x])[0])


def test_the_largest_of_a_row_is_nan(gpu: Target) -> None:
    g = GraphBuilder("largest")
    graph = g.build(g.op("reduce_max", g.input("x", (3, 40)), axes=(1,), keepdims=False))
    x = np.ones((3, 40), np.float32)
    x[1, 33] = np.nan
    (found,) = build_kernel(Kernel(graph), gpu)([x])
    np.testing.assert_array_equal(found, evaluate(graph, [x])[0])


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_the_compiler_takes_them(arch: str, dtype: str) -> None:
    g = GraphBuilder("relu")
    kernel, target = Kernel(g.build(g.op("relu", g.input("x", (4, 8), dtype)))), parse_target(f"cuda:{arch}")
    runner = build_cuda(kernel, schedule(kernel, target), target)
    assert "tcomp_maximum" in runner.source()
    runner.require_no_spills()
