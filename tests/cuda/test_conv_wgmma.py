"""Convolutions by groups of warps whose windows threads copy: emulated numbers, choices, resources."""

from __future__ import annotations

from dataclasses import replace

import pytest
from device_programs import ends_the_process
from gpu_assembly import disassembled, loop_bodies
from mma_kernels import assert_computes, conv, in_blocks, rows_of
from test_conv_mma import KERNELS as OTHERS
from test_conv_mma import P
from test_matmul_wgmma import HOPPER, SMALL

from tcomp.codegen.cuda.cubin import Cubin, compile_cubin
from tcomp.codegen.cuda.device_code import device_code
from tcomp.codegen.cuda.jit import CudaKernelRunner
from tcomp.errors import ScheduleError
from tcomp.target.target import TARGETS
from tcomp.tensor.selection import schedule, template_for
from tcomp.tensor.template import TEMPLATES
from tcomp.tensor.tensor_cores.wgmma_plan import WgmmaPlan
from tcomp.tuner.trial_data import trial_data

TEMPLATE = "conv_wgmma_cuda"
CHUNKS = {**SMALL, "gathers": 1}
KERNELS = {name: kernel for name, kernel in OTHERS.items() if TEMPLATES[TEMPLATE].accepts(kernel, HOPPER)} | {
    "many channels": conv((1, 12, 5, 5, 8), (70, 96, 3, 3), True, padding=P, **in_blocks(8, 8)),
    "bfloat16": conv((1, 2, 5, 5, 8), (8, 16, 3, 3), dtype="bfloat16", padding=P, **in_blocks(8, 8)),
}
FEW = ("many channels", "dilated, plain to blocks")
"""Those that are always tested: g++ takes long for each."""
LAYERS = {
    "3x3": conv((32, 16, 28, 28, 8), (128, 128, 3, 3), True, padding=P, **in_blocks(8, 8)),
    "1x1": conv((32, 32, 14, 14, 8), (1024, 256, 1, 1), True, **in_blocks(8, 8)),
    "strides": conv((32, 32, 28, 28, 8), (256, 256, 3, 3), strides=(2, 2), padding=P, **in_blocks(8, 8)),
    "plain": conv((32, 40, 28, 28), (256, 40, 3, 3), strides=(2, 2), padding=P),
}
"""Of 32 images, as in ResNet-50."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
@pytest.mark.usefixtures("gpu")
def test_numbers(name: str) -> None:
    assert_computes(KERNELS[name], HOPPER, TEMPLATE, {**CHUNKS, "stages": 3})


@pytest.mark.parametrize(
    "knobs",
    [
        {"stages": 2},
        pytest.param({"splits": 3, "stages": 6}, marks=pytest.mark.slow),
        pytest.param(
            {"block_rows": 128, "block_columns": 192, "consumers": 2, "stages": 4}, marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_stages(knobs: dict[str, int]) -> None:
    """Several tiles a block: copies of a step are waited for before those of the next tile begin."""
    assert HOPPER.gpu is not None
    few = replace(HOPPER, gpu=replace(HOPPER.gpu, processors=1))
    assert_computes(KERNELS["many channels"], few, TEMPLATE, {**CHUNKS, **knobs})


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("tcomp_gathers_wait<1>()", "tcomp_gathers_wait<2>()"),
        pytest.param("tcomp_gathers_are_seen()", "tcomp_gathers_commit()", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_waits_and_fences_are_needed(right: str, wrong: str, capfd: pytest.CaptureFixture[str]) -> None:
    kernel = KERNELS["many channels"]
    scheduled = TEMPLATES[TEMPLATE].apply(kernel, HOPPER, {**CHUNKS, "stages": 3})
    code = device_code(scheduled.function, "kernel", HOPPER)
    assert right in code.source
    changed = replace(code, source=code.source.replace(right, wrong))
    cubin = compile_cubin(changed.source, "sm_90a")
    runner = CudaKernelRunner(kernel, HOPPER, scheduled, changed, cubin)
    assert ends_the_process(lambda: runner(trial_data(kernel, 0).inputs))
    assert "a product begins before it sees what threads have copied" in capfd.readouterr().err


def test_what_is_left_to_others() -> None:
    assert template_for(OTHERS["tf32"], HOPPER).id == "conv_mma_cuda@1"
    assert not TEMPLATES[TEMPLATE].accepts(OTHERS["tf32"], HOPPER)


def test_clusters_are_for_tiles() -> None:
    plan = WgmmaPlan("float16", 1, 512, 64, 576, 64, 64, 1, 3, cluster=2, gathers=1, output=rows_of(2))
    assert HOPPER.gpu is not None
    assert "clusters of 2" in (plan.complaint(HOPPER.gpu) or "")
    with pytest.raises(ScheduleError, match="clusters of 2 blocks"):
        schedule(LAYERS["3x3"], HOPPER, {"algorithm": TEMPLATE, **CHUNKS, "cluster": 2})


def test_it_is_the_default_where_its_estimate_is_less() -> None:
    small = conv((1, 2, 5, 5, 8), (16, 16, 3, 3), padding=P, **in_blocks(8, 8))
    for kernel, name in ((LAYERS["strides"], TEMPLATE), (small, "conv_mma_cuda")):
        template = template_for(kernel, HOPPER)
        assert template.id_of(template.space(kernel, HOPPER).default).startswith(name)
    assert template_for(LAYERS["strides"], TARGETS["cuda:sm_90"]).id == "conv_mma_cuda@1"


def compiled(name: str, **knobs: int) -> Cubin:
    template, kernel = TEMPLATES[TEMPLATE], LAYERS[name]
    space = template.space(kernel, HOPPER)
    config = {**space.complete(space.default), **knobs}
    space.check(config)
    return compile_cubin(
        device_code(template.apply(kernel, HOPPER, config).function, "kernel", HOPPER).source, "sm_90a"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("real_compiler")
def test_defaults_neither_spill_nor_wait(name: str) -> None:
    cubin = compiled(name)
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())
    assert cubin.losses == ()


@pytest.mark.slow
@pytest.mark.usefixtures("real_compiler")
def test_instructions_of_a_chunk_are_those_of_the_estimate() -> None:
    """Of 8 chunks of a thread and step, 42 each; half of them are additions, shifts and comparisons."""
    text = disassembled(compiled("3x3", block_rows=128, block_columns=128, consumers=2, streamed=0).image)
    copying = min((body for body in loop_bodies(text) if body["LDGSTS"]), key=lambda body: body.total())
    assert copying["LDGSTS"] == 8
    assert 38 <= copying.total() / 8 <= 46
    whole = sum(
        copying[name] for name in ("LEA", "IADD3", "SHF", "ISETP", "MOV", "IABS", "LOP3", "PLOP3", "VIADD")
    )
    assert 20 <= whole / 8 <= 24
