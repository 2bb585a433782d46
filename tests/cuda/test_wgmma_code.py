"""What becomes of the defaults of products by groups of warps: registers, loops, choices."""

from __future__ import annotations

import re

import pytest
from gpu_assembly import disassembled
from mma_kernels import matmul, rows_of
from test_wgmma_instructions import product

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import DeviceCode, device_code
from tcomp.errors import ScheduleError
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule, template_for
from tcomp.tensor.template import TEMPLATES
from tcomp.tensor.tensor_cores.wgmma_plan import WgmmaPlan, default_wgmma_plan

HOPPER = TARGETS["cuda:sm_90a"]
TEMPLATE = "matmul_wgmma_cuda"
LARGE = {
    "square": matmul((4096, 4096), (4096, 4096), constant=True),
    "epilogue, columns along memory": matmul((4096, 1024), (1024, 4096), "bias", "gelu", "residual"),
    "ragged": matmul((5000, 1000), (1000, 1000), "bias", "relu"),
    "int8": matmul((2048, 4096), (4096, 2048), dtype="int8", out_dtype="int32", constant=True),
    "tf32": matmul((4096, 4096), (4096, 4096), "bias", dtype="float32", multiply_as="tf32", constant=True),
    "long": matmul((256, 16384), (16384, 256), dtype="bfloat16", constant=True),
    "a tile a block, gelu": matmul((512, 512), (512, 512), "bias", "gelu", constant=True),
    "a tile a block, transposed": matmul((1024, 1024), (1024, 1024), "bias", "relu", "transpose"),
    "a step a tile": matmul((512, 64), (64, 512), "transpose"),
}
TRANSPOSED = matmul((1024, 1536), (1536, 1536), "transpose", constant=True)


def code_of(kernel: Kernel, **knobs: int) -> DeviceCode:
    template = TEMPLATES[TEMPLATE]
    config = {**template.space(kernel, HOPPER).default, **knobs}
    template.space(kernel, HOPPER).check(config)
    return device_code(template.apply(kernel, HOPPER, config).function, "kernel", HOPPER)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.usefixtures("real_compiler")
def test_defaults_neither_spill_nor_wait(name: str) -> None:
    cubin = compile_cubin(code_of(LARGE[name]).source, "sm_90a")
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())
    assert cubin.losses == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [(64, 64, 1), (128, 64, 2), (64, 128, 1), (128, 128, 2), (64, 192, 1), (64, 256, 1)]
)
@pytest.mark.usefixtures("real_compiler")
def test_other_tiles_of_transposed_outputs_do_not_wait(block: tuple[int, int, int]) -> None:
    knobs = dict(zip(("block_rows", "block_columns", "consumers"), block, strict=True))
    cubin = compile_cubin(code_of(TRANSPOSED, **knobs, splits=1, stages=3).source, "sm_90a")
    assert cubin.losses == ()


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
def test_products_one_after_the_other_are_noticed() -> None:
    (source, *_), _, _ = product("float16", 64, before_the_end="sums[3] += 1; tcomp_products_commit()")
    assert any("is injected" in loss for loss in compile_cubin(source, "sm_90a").losses)


@pytest.mark.slow
@pytest.mark.parametrize("block", [{}, {"block_rows": 256, "block_columns": 128}])
@pytest.mark.usefixtures("real_compiler")
def test_a_step_is_products_and_little_else(block: dict[str, int]) -> None:
    """Each of the 4 or 8 keeps the tensor cores busy for 128 or 64 cycles."""
    text = disassembled(compile_cubin(code_of(LARGE["square"], **block).source, "sm_90a").image)
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", text)
    products = [i for i, name in enumerate(instructions) if name.startswith("HGMMA")]
    assert len(products) == (8 if block else 4)
    step = instructions[products[0] : products[-1]]
    assert len(step) <= 12 * len(products)
    assert not any(name.startswith(("WARPGROUP", "LDS", "STS", "LDG")) for name in step)


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"block_rows": 192, "consumers": 2}, "no whole pieces"),
        ({"block_rows": 256, "block_columns": 256}, "256 sums"),
        ({"stages": 8}, "shared memory"),
        ({"splits": 32}, "no 32 parts"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_built(knobs: dict[str, int], reason: str) -> None:
    block = {"block_rows": 128, "block_columns": 256, "consumers": 2, "stages": 4}
    with pytest.raises(ScheduleError, match=reason):
        code_of(matmul((512, 512), (512, 512)), **{**block, **knobs})


def test_defaults_fill_the_processors() -> None:
    """Small products are cut finer than large ones, and over the depth where that is long."""
    assert HOPPER.gpu is not None

    def plan(*extents: int) -> WgmmaPlan:
        return default_wgmma_plan("float16", (1, *extents), rows_of(2), HOPPER.gpu)

    large, small, long = plan(8192, 8192, 8192), plan(512, 512, 512), plan(256, 256, 16384)
    assert (large.splits, large.block_rows * large.block_columns) == (1, 128 * 256)
    assert small.block_rows * small.block_columns < 128 * 128
    assert long.shares(HOPPER.gpu).blocks >= HOPPER.gpu.processors // 2


def test_it_is_the_default_where_its_estimate_is_less() -> None:
    def chosen(kernel: Kernel, target: str) -> str:
        template = template_for(kernel, TARGETS[target])
        default = template.space(kernel, TARGETS[target]).default
        return template.id_of(default).partition("@")[0]

    assert chosen(LARGE["square"], "cuda:sm_90a") == TEMPLATE
    assert chosen(LARGE["square"], "cuda:sm_90") == "matmul_mma_cuda"
    assert chosen(LARGE["square"], "cuda:sm_80") == "matmul_mma_cuda"
    few = matmul((16, 256), (256, 32), constant=True)
    assert chosen(few, "cuda:sm_90a") != TEMPLATE
    assert schedule(few, HOPPER) is not None


def test_estimates_know_computing_and_memory() -> None:
    """4096^3 at 989.4 TFLOP/s is 275,000 cycles of 1.98 GHz; one row reads 32 MiB at 3.35 TB/s."""
    template = TEMPLATES[TEMPLATE]
    one_row = matmul((1, 4096), (4096, 4096), constant=True)
    assert 275e3 < template.estimate(LARGE["square"], HOPPER) < 1.3 * 275e3
    assert 19.8e3 < template.estimate(one_row, HOPPER) < 1.6 * 19.8e3
