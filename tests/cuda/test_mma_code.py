"""What becomes of the defaults of kernels on tensor cores: banks, registers, instructions."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gpu_assembly import disassembled, loop_bodies
from mma_kernels import SMALL, conv, in_blocks, matmul, rows_of

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import DeviceCode, device_code
from tcomp.errors import ScheduleError
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule, template_for
from tcomp.tensor.template import TEMPLATES
from tcomp.tensor.tensor_cores.mma_plan import MmaPlan, default_plan

ARCHITECTURES = ("sm_80", "sm_90a")
LARGE = {
    "matmul": matmul((4096, 4096), (4096, 4096), constant=True),
    "matmul, not packed, epilogue": matmul((1024, 1024), (1024, 1024), "bias", "gelu", "residual"),
    "matmul, ragged": matmul((1000, 1000), (1000, 1000), "bias", "relu"),
    "matmul, int8": matmul((2048, 512), (512, 2048), dtype="int8", out_dtype="int32", constant=True),
    "matmul, tf32": matmul((4096, 4096), (4096, 4096), dtype="float32", multiply_as="tf32", constant=True),
    "matmul, float8": matmul(
        (4096, 4096), (4096, 4096), "bias", dtype="float8_e4m3fn", out_dtype="float32", constant=True
    ),
    "matmul, one row": matmul((1, 4096), (4096, 4096), "bias", dtype="bfloat16", constant=True),
    "conv": conv((8, 1, 56, 56, 64), (64, 64, 3, 3), True, padding=(1,) * 4, **in_blocks(64, 64)),
    "conv, tf32": conv(
        (8, 16, 56, 56, 4),
        (64, 64, 3, 3),
        True,
        padding=(1,) * 4,
        dtype="float32",
        multiply_as="tf32",
        **in_blocks(4, 4),
    ),
    "conv, plain": conv((8, 3, 224, 224), (64, 3, 7, 7), strides=(2, 2), padding=(3,) * 4),
}


def code_of(kernel: Kernel, arch: str, **knobs: int) -> DeviceCode:
    target = TARGETS[f"cuda:{arch}"]
    default = template_for(kernel, target).space(kernel, target).default
    return device_code(schedule(kernel, target, {**default, **knobs}).function, "kernel", target)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.usefixtures("real_compiler")
def test_defaults_do_not_spill(name: str, arch: str) -> None:
    arch = "sm_89" if arch == "sm_80" and "float8" in name else arch
    code = code_of(LARGE[name], arch)
    cubin = compile_cubin(code.source, arch)
    assert len(cubin.resources) == len(code.launches)
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())
    assert all(launch.block[0] >= 128 for launch in code.launches)


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
def test_every_other_instruction_multiplies() -> None:
    """One keeps a tensor core busy for 8 cycles, in which its scheduler issues 8 instructions."""
    cubin = compile_cubin(code_of(LARGE["matmul"], "sm_80").source, "sm_80")
    hot = max(loop_bodies(disassembled(cubin.image)), key=lambda body: body["HMMA"])
    assert hot["HMMA"] / hot.total() >= 0.5
    assert hot["LDSM"] / hot["HMMA"] <= 0.25


LAYOUTS = {
    "along the depth": matmul((64, 64), (64, 64), constant=True),
    "along rows and columns": matmul((64, 64), (64, 64), transpose_a=True),
}


@pytest.mark.parametrize(("block_columns", "depth_chunks"), [(64, 4), (64, 8), (128, 4)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_no_two_lines_share_banks(name: str, block_columns: int, depth_chunks: int) -> None:
    """The 8 lines of a matrix, and what 8 threads copy, are 16 bytes each of all 32 banks."""
    knobs = {**SMALL, "block_columns": block_columns, "warp_columns": 32, "depth_chunks": depth_chunks}
    code = code_of(LAYOUTS[name], "sm_80", **knobs)
    threads = code.launches[0].block[0]
    accesses = re.findall(r"(tcomp_load_matrices\w*|tcomp_copy_async)(.*)", code.source)
    assert {what for what, _ in accesses} > {"tcomp_copy_async"}
    for _, arguments in accesses:
        chunks = elements(arguments, threads) // 8
        for phase in chunks.reshape(-1, 8):
            assert len(set(phase % 8)) == 8


def elements(arguments: str, threads: int) -> np.ndarray:
    """The elements of shared memory whose addresses a call gets from each thread, at the first step."""
    begin = arguments.index("stages_ptr[") + len("stages_ptr[")
    depth, end = 1, begin
    while depth:
        depth += {"[": 1, "]": -1}.get(arguments[end], 0)
        end += 1
    expression = arguments[begin : end - 1].replace("((int)threadIdx.x)", "thread").replace("/", "//")
    names = {"thread": np.arange(threads), "step": 0}
    return np.broadcast_to(eval(expression, names), (threads,))


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"block_rows": 16, "warp_rows": 32}, "do not fill"),
        ({"block_rows": 256, "block_columns": 256, "warp_rows": 64, "warp_columns": 64}, "shared memory"),
        ({"splits": 32}, "no 32 parts"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_built(knobs: dict[str, int], reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        code_of(matmul((512, 512), (512, 512)), "sm_80", **{"depth_chunks": 8, "stages": 5, **knobs})


def test_defaults_fill_the_processors() -> None:
    """Small products are cut finer than large ones, and over the depth where that is long."""
    gpu = TARGETS["nvidia/a100"].gpu
    assert gpu is not None

    def plan(*extents: int) -> MmaPlan:
        return default_plan("float16", (1, *extents), rows_of(2), gpu)

    large, small, long = plan(8192, 8192, 8192), plan(512, 512, 512), plan(256, 256, 16384)
    assert large.splits == 1
    assert large.block_rows * large.block_columns >= 128 * 128
    assert small.block_rows * small.block_columns < 128 * 128
    assert long.splits > 1
    assert long.shares(gpu).blocks >= gpu.processors // 2


def test_tensor_cores_are_the_default_where_the_gpu_has_them() -> None:
    def name(kernel: Kernel, target: str) -> str:
        template = template_for(kernel, TARGETS[target])
        default = template.space(kernel, TARGETS[target]).default
        return template.id_of(default).partition("@")[0]

    float32 = matmul((64, 64), (64, 64), dtype="float32")
    assert name(LARGE["matmul"], "cuda:sm_80") == "matmul_mma_cuda"
    assert name(LARGE["conv"], "cuda:sm_90") == "conv_mma_cuda"
    assert "mma" not in name(LARGE["matmul"], "cuda:sm_75")
    assert "mma" not in name(float32, "cuda:sm_80")


def test_estimates_know_computing_and_memory() -> None:
    """4096^3 at 312 TFLOP/s is 621,000 cycles of 1.41 GHz; one row reads 32 MiB at 1.555 TB/s."""
    target = TARGETS["nvidia/a100"]
    template = TEMPLATES["matmul_mma_cuda"]
    assert 621e3 < template.estimate(LARGE["matmul"], target) < 1.5 * 621e3
    assert 30e3 < template.estimate(LARGE["matmul, one row"], target) < 1.5 * 31e3
