"""Code of attention on tensor cores: banks of shared memory, registers, instructions, estimates."""

from __future__ import annotations

import re

import pytest
from gpu_assembly import disassembled, loop_bodies
from test_attention_cuda import attention
from test_mma_code import elements

from tcomp.codegen.cuda.cubin import Cubin, compile_cubin
from tcomp.codegen.cuda.device_code import DeviceCode, device_code
from tcomp.relay.builder import GraphBuilder
from tcomp.target.target import TARGETS
from tcomp.tensor.gpu.rates import clock
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import TEMPLATES

TEMPLATE = TEMPLATES["attention_mma_cuda"]
ARCHITECTURES = ("sm_80", "sm_90a")


def heads(
    count: int, length: int, size: int, dtype: str = "float16", mask: tuple[int, ...] = (), causal: int = 0
) -> Kernel:
    """Attention of `count` heads, with a mask of float32 where that has a shape."""
    g = GraphBuilder()
    operands = [g.input(name, (count, length, size), dtype) for name in ("query", "key", "value")]
    masks = [g.input("mask", mask)] if mask else []
    return Kernel(g.build(g.op("attention", *operands, *masks, scale=size**-0.5, causal=causal)))


BERT, LONG = heads(12, 128, 64, mask=(128, 128)), heads(16, 4096, 128)
KERNELS = {
    "BERT-base": BERT,
    "ViT, bfloat16": heads(12, 197, 64, "bfloat16"),
    "4096 x 64": heads(16, 4096, 64),
    "4096 x 128": LONG,
    "4096 x 128, bfloat16": heads(16, 4096, 128, "bfloat16"),
    "2048 x 128, mask": heads(16, 2048, 128, mask=(2048, 2048)),
    "1024 x 80": heads(16, 1024, 80),
    "1024 x 256": heads(8, 1024, 256),
    "4096 x 64, causal": heads(16, 4096, 64, causal=1),
    "4096 x 128, causal": heads(16, 4096, 128, causal=1),
    "1024 x 256, causal": heads(8, 1024, 256, causal=1),
    "1000 x 128, causal, mask": heads(16, 1000, 128, "bfloat16", (1, 1000), causal=1),
    "grouped heads, causal": attention(
        (8, 4, 512, 128), (8, 1, 512, 128), (8, 1, 512, 128), dtype="float16", causal=1
    ),
    "grouped heads": attention((8, 4, 512, 128), (8, 1, 512, 128), (8, 1, 512, 128), dtype="float16"),
    "one query, grouped heads": attention(
        (8, 4, 1, 128), (8, 1, 4096, 128), (8, 1, 4096, 128), dtype="bfloat16"
    ),
    "few queries, causal, mask": attention(
        (8, 20, 64), (8, 2048, 64), (8, 2048, 64), (1, 2048), dtype="float16", causal=2029
    ),
    "one query of 256": attention((4, 1, 256), (4, 2000, 256), (4, 2000, 256), dtype="float16"),
    "one query": attention((32, 1, 128), (32, 4096, 128), (32, 4096, 128), dtype="float16"),
}


def code_of(kernel: Kernel, arch: str, **knobs: int) -> DeviceCode:
    target = TARGETS[f"cuda:{arch}"]
    config = {**TEMPLATE.space(kernel, target).default, **knobs}
    TEMPLATE.space(kernel, target).check(config)
    return device_code(TEMPLATE.apply(kernel, target, config).function, "kernel", target)


def compiled(kernel: Kernel, arch: str) -> Cubin:
    return compile_cubin(code_of(kernel, arch).source, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.usefixtures("real_compiler")
def test_defaults_do_not_spill(name: str, arch: str) -> None:
    assert all(found.spilled_bytes == 0 for found in compiled(KERNELS[name], arch).resources.values())


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", ["4096 x 64", "4096 x 128"])
@pytest.mark.usefixtures("real_compiler")
def test_tensor_cores_have_longer_to_do_than_instructions_take(name: str, arch: str) -> None:
    """One keeps an A100's tensor core busy for 8 cycles, in which its scheduler issues 8 instructions."""
    text = disassembled(compiled(KERNELS[name], arch).image)
    hot = max(loop_bodies(text), key=lambda body: body["HMMA"])
    assert hot["HMMA"] == 128
    assert hot.total() <= 0.62 * 8 * hot["HMMA"]
    assert hot["LDSM"] <= 0.4 * hot["HMMA"]


@pytest.mark.parametrize("size", [64, 128, 80])
@pytest.mark.parametrize("rows", [16, 32])
def test_no_two_lines_share_banks(size: int, rows: int) -> None:
    """The 8 lines of a matrix, and what 8 threads copy of whole lines, are 16 bytes each of all 32 banks."""
    code = code_of(heads(1, 128, size), "sm_80", tile_m=4 * rows, tile_n=32, warps=4)
    accesses = re.findall(r"(tcomp_load_matrices\w*|tcomp_copy_async)(.*)", code.source)
    assert {what for what, _ in accesses} == {
        "tcomp_load_matrices", "tcomp_load_matrices_transposed", "tcomp_copy_async",
    }  # fmt: skip
    for what, arguments in accesses:
        chunks = elements(arguments, 128) // 8
        if what == "tcomp_copy_async" and size % 64:
            continue
        for phase in chunks.reshape(-1, 8):
            assert len(set(phase % 8)) == 8


def test_defaults_fill_the_processors() -> None:
    """Small problems are cut finer than large ones, whose blocks have rows enough to reuse their keys."""
    target = TARGETS["nvidia/a100"]
    assert int(TEMPLATE.space(BERT, target).default["tile_m"]) <= 64
    for kernel in (LONG, KERNELS["4096 x 64"]):
        default = TEMPLATE.space(kernel, target).default
        assert (default["tile_m"], default["warps"]) == (128, 4)


def test_estimates_know_computing_and_memory() -> None:
    """Products of 16 heads of 4096 x 128 take 627,000 cycles of an A100; one query reads 64 MiB."""
    target = TARGETS["nvidia/a100"]
    assert target.gpu is not None
    at_peak = LONG.flops * clock(target.gpu) / target.gpu.flops["float16"]
    assert 1.2 * at_peak < TEMPLATE.estimate(LONG, target) < 2 * at_peak
    reading = (64 << 20) * clock(target.gpu) / target.gpu.bytes_per_second
    assert reading < TEMPLATE.estimate(KERNELS["one query"], target)
