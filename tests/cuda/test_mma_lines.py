"""Products by `mma.sync` whose outputs pass through shared memory: numbers, banks, registers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from mma_kernels import SMALL, assert_computes, matmul, rows_of
from test_mma_code import elements

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import DeviceCode, device_code
from tcomp.errors import ScheduleError
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import TEMPLATES
from tcomp.tensor.tensor_cores.mma_plan import default_plan

TEMPLATE = "matmul_mma_cuda"
AMPERE = TARGETS["cuda:sm_80"]
WIDE = {"block_rows": 64, "block_columns": 128, "warp_columns": 64}
KERNELS = {
    "ragged": (matmul((90, 72), (72, 136), "bias", "relu"), {}),
    "gelu, residual": (matmul((70, 64), (64, 136), "bias", "gelu", "residual", constant=True), WIDE),
    "batch": (matmul((3, 45, 72), (3, 72, 40), "residual"), {}),
    "bfloat16": (
        matmul((90, 72), (72, 136), "relu", dtype="bfloat16"), {"block_columns": 64, "warp_columns": 32},
    ),
    "float32": (
        matmul((70, 72), (72, 36), "bias", out_dtype="float32"), {"block_columns": 64, "warp_columns": 32},
    ),
    "tf32": (
        matmul((70, 76), (76, 132), "bias", dtype="float32", multiply_as="tf32"), {"block_columns": 64},
    ),
    "int8": (
        matmul((70, 288), (288, 132), dtype="int8", out_dtype="int32"),
        {"block_columns": 64, "warp_columns": 32, "stages": 4, "depth_chunks": 8},
    ),
    "parts of the depth": (matmul((40, 440), (440, 40), "bias", "relu"), {"splits": 3}),
    "streams of steps": (matmul((190, 320), (320, 192), "bias"), {**WIDE, "streamed": 1}),
}  # fmt: skip
FEW = ("gelu, residual", "float32", "streams of steps")
"""Those that are always tested: g++ takes long for each."""


def code_of(kernel: Kernel, arch: str = "sm_80", **knobs: int) -> DeviceCode:
    target = TARGETS[f"cuda:{arch}"]
    space = TEMPLATES[TEMPLATE].space(kernel, target)
    config = {**space.default, **knobs}
    space.check(config)
    return device_code(TEMPLATES[TEMPLATE].apply(kernel, target, config).function, "kernel", target)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
@pytest.mark.usefixtures("gpu")
def test_numbers(name: str) -> None:
    kernel, knobs = KERNELS[name]
    assert AMPERE.gpu is not None
    few = replace(AMPERE, gpu=replace(AMPERE.gpu, processors=4, threads=128))
    assert_computes(kernel, few, TEMPLATE, {**SMALL, "lines": 1, **knobs})


@pytest.mark.parametrize("warp_columns", [16, 32, 64])
def test_no_two_threads_share_banks(warp_columns: int) -> None:
    """32 threads write 4 bytes each, 8 read 16 bytes each: of all 32 banks."""
    block = {"block_rows": 64, "block_columns": 2 * warp_columns, "warp_columns": warp_columns}
    code = code_of(matmul((64, 64), (64, 128), constant=True), **{**SMALL, **block, "lines": 1})
    threads = code.launches[0].block[0]
    writes = re.findall(r"tcomp_put_words<1>(.*)", code.source)
    reads = [line[line.index("stages_ptr") :] for line in re.findall(r"tcomp_store_chunk(.*)", code.source)]
    assert len(writes) == 32 * warp_columns // 64
    assert len(reads) == len(writes) // 4
    for found, size, together in ((writes, 2, 32), (reads, 8, 8)):
        for arguments in found:
            places = elements(arguments, threads) // size
            for phase in places.reshape(-1, together):
                assert len(set(phase % together)) == together


@pytest.mark.parametrize(
    ("kernel", "knobs", "reason"),
    [
        (matmul((256, 256), (256, 256), "transpose"), {}, "cannot be stored in whole lines"),
        (
            matmul((256, 256), (256, 256), out_dtype="float32"),
            {**WIDE, "block_rows": 256, "warp_rows": 64, "stages": 2, "depth_chunks": 4, "splits": 1},
            "131072 bytes of a tile's output; stages have 49152",
        ),
    ],
    ids=["transposed", "too large"],
)
def test_what_cannot_run_is_refused(kernel: Kernel, knobs: dict[str, int], reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        code_of(kernel, **knobs, lines=1)


def test_lines_are_the_default_where_they_take_less() -> None:
    """Of 16 bits; sectors of 32 are whole from registers, too."""
    assert AMPERE.gpu is not None
    extents, gpu = (1, 8192, 4096, 1024), AMPERE.gpu
    plan = default_plan("float16", extents, rows_of(2), gpu)
    assert plan.lines == 1
    assert 1.03 < replace(plan, lines=0).cycles(gpu) / plan.cycles(gpu) < 1.1
    assert default_plan("tf32", extents, rows_of(4), gpu).lines == 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.usefixtures("real_compiler")
def test_large_tiles_do_not_spill(arch: str) -> None:
    kernel = matmul((5000, 1000), (1000, 1000), "bias", "gelu", "residual")
    knobs = {"block_rows": 256, "block_columns": 128, "warp_rows": 64, "warp_columns": 64, "stages": 3}
    source = code_of(kernel, arch, **knobs, depth_chunks=8, splits=1, streamed=0, lines=1).source
    assert "tcomp_put_words" in source
    assert all(found.spilled_bytes == 0 for found in compile_cubin(source, arch).resources.values())
