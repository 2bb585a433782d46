"""Products of few rows ask for as much of memory as its latency and bandwidth call for: Little's law."""

from __future__ import annotations

from math import ceil

import pytest
from mma_kernels import matmul

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import device_code
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import TARGETS, Gpu
from tcomp.tensor.gpu.few_rows import RowsPlan
from tcomp.tensor.gpu.threads import grid_and_block, launches_of
from tcomp.tensor.gpu.warps import WARP
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import TEMPLATES

TEMPLATE = TEMPLATES["matmul_rows_cuda"]
LATENCY = 700e-9
SHAPES = ((1, 1000, 2048), (1, 4096, 4096), (8, 11008, 4096))
GPUS = ("nvidia/a100", "nvidia/h100")


def product_of(shape: tuple[int, int, int], dtype: str, in_depth: bool) -> Kernel:
    rows, columns, depth = shape
    right = (columns, depth) if in_depth else (depth, columns)
    return matmul((rows, depth), right, dtype=dtype, constant=True, transpose_b=in_depth)


def resident(plan: RowsPlan, gpu: Gpu, registers: int) -> int:
    threads = plan.warps * WARP
    return min(gpu.threads // threads, gpu.registers // (ceil(registers / 8) * 8 * threads))


def under_way(plan: RowsPlan, gpu: Gpu, blocks: int, registers: int, lanes: int, itemsize: int) -> int:
    at_once = min(blocks, resident(plan, gpu, registers) * gpu.processors)
    return at_once * plan.warps * WARP * plan.unroll * plan.columns * lanes * itemsize


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("in_depth", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_defaults_have_enough_under_way(
    shape: tuple[int, int, int], dtype: str, in_depth: bool, name: str
) -> None:
    """Of the grid that the launch has; small matrices need not be all on their way at once."""
    target = TARGETS[name]
    assert target.gpu is not None
    kernel, gpu, itemsize = product_of(shape, dtype, in_depth), target.gpu, numpy_dtype(dtype).itemsize
    config = TEMPLATE.space(kernel, target).default
    plan, lanes = RowsPlan.of(config), 4 if in_depth else 1
    first = launches_of(TEMPLATE.apply(kernel, target, config).function)[0]
    blocks = grid_and_block(first)[0][0]
    found = under_way(plan, gpu, blocks, plan.registers(shape[0], 4, lanes), lanes, itemsize)
    whole = shape[1] * shape[2] * itemsize
    assert found >= min(0.9 * gpu.bytes_per_second * LATENCY, whole / 4)
    assert blocks * plan.warps >= 4 * gpu.processors


def test_estimates_follow_what_is_under_way() -> None:
    """Half as many loads at once take twice as long, where memory could give more."""
    target = TARGETS["nvidia/h100"]
    assert target.gpu is not None
    gpu = target.gpu
    kernel = product_of((1, 4096, 4096), "float16", True)
    at_full_rate = kernel.nbytes / gpu.bytes_per_second
    plan = RowsPlan.of(TEMPLATE.space(kernel, target).default)
    assert plan.unroll > 1
    clock = gpu.flops["float32"] / (2 * 128 * gpu.processors)
    assert 1 < TEMPLATE.estimate(kernel, target) / clock / at_full_rate < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("in_depth", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("real_compiler")
def test_the_compiler_takes_no_more_registers(shape: tuple[int, int, int], in_depth: bool, name: str) -> None:
    """Or fewer blocks would run at once; nothing spills."""
    target = TARGETS[name]
    assert target.gpu is not None
    kernel = product_of(shape, "float16", in_depth)
    config = TEMPLATE.space(kernel, target).default
    plan = RowsPlan.of(config)
    code = device_code(TEMPLATE.apply(kernel, target, config).function, "kernel", target)
    found = compile_cubin(code.source, target.gpu.arch).resources
    assert all(one.spilled_bytes == 0 for one in found.values())
    registers = max(one.registers for one in found.values())
    expected = plan.registers(shape[0], 4, 4 if in_depth else 1)
    assert resident(plan, target.gpu, registers) >= resident(plan, target.gpu, expected)
