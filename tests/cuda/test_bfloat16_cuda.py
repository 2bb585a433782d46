"""Rounding to bfloat16 on GPUs: numbers, and code that does not grow with what is rounded."""

from __future__ import annotations

import numpy as np
import pytest
from mma_kernels import assert_computes, conv, matmul

from tcomp.codegen.cuda.device_code import device_code
from tcomp.codegen.cuda.jit import build_cuda
from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.types import numpy_dtype
from tcomp.target.parse import parse_target
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule

NUMBERS = (0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.3895314e38, 3.4e38, np.inf, -np.inf, np.nan, 1e-40, -2.7)
"""Ties to even both ways, what rounds to infinity, denormal numbers."""


def rounding() -> Kernel:
    g = GraphBuilder("rounding")
    return Kernel(g.build(g.op("cast", g.input("x", (len(NUMBERS),), "float32"), dtype="bfloat16")))


def test_numbers_are_rounded_to_even(gpu: Target) -> None:
    kernel, x = rounding(), np.array(NUMBERS, np.float32)
    (found,) = build_kernel(kernel, gpu)([x])
    rounded = x.astype(numpy_dtype("bfloat16"))
    np.testing.assert_array_equal(found.astype(np.float32), rounded.astype(np.float32))


def test_padding_is_chosen_in_bits(gpu: Target) -> None:
    """As in kernels that read elements or the padding around them, a thread each."""
    blocks = {"data_layout": "NCHW8c", "out_layout": "NCHW8c"}
    kernel = conv((1, 1, 5, 5, 8), (8, 8, 3, 3), dtype="bfloat16", padding=(1, 1, 1, 1), **blocks)
    assert_computes(kernel, gpu, "direct_cuda", {"threads": 64})


def test_code_does_not_grow_with_what_is_rounded() -> None:
    """Five operators take not much more than one; in bits, each took four times the one before."""
    target = TARGETS["cuda:sm_80"]

    def length(*epilogue: str) -> int:
        kernel = matmul((64, 64), (64, 64), *epilogue, dtype="bfloat16")
        return len(device_code(schedule(kernel, target).function, "kernel", target).source)

    assert length("relu", "bias", "relu", "bias", "relu") < 8 * length("relu")


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
def test_the_compiler_takes_it(arch: str) -> None:
    kernel, target = rounding(), parse_target(f"cuda:{arch}")
    runner = build_cuda(kernel, schedule(kernel, target), target)
    assert "tcomp_bfloat16_bits" in runner.source()
    runner.require_no_spills()
