"""Convolutions on tensor cores compute what the reference does, on an emulated GPU."""

from __future__ import annotations

import pytest
from mma_kernels import SMALL, assert_computes, conv, in_blocks

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.device_code import device_code
from tcomp.relay.builder import GraphBuilder
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule, template_for
from tcomp.tensor.template import TEMPLATES

TEMPLATE = "conv_mma_cuda"
P = (1, 1, 1, 1)
KERNELS = {
    "all channels of a pixel": conv((1, 1, 6, 7, 24), (16, 24, 3, 3), True, padding=P, **in_blocks(24, 16)),
    "blocks, strides": conv((2, 2, 9, 9, 16), (24, 32, 3, 3), strides=(2, 1), padding=P, **in_blocks(16, 8)),
    "1x1": conv((2, 1, 5, 5, 32), (40, 32, 1, 1), True, **in_blocks(32, 40)),
    "ragged channels": conv((1, 2, 5, 5, 16), (19, 20, 3, 3), padding=(1, 0, 0, 1), **in_blocks(16, 16)),
    "plain": conv((1, 3, 9, 9), (18, 3, 3, 3), True, strides=(2, 2), padding=P),
    "dilated, plain to blocks": conv((1, 16, 9, 9), (16, 16, 3, 3), dilation=(2, 2), out_layout="NCHW16c"),
    "weights not known": conv((1, 1, 5, 5, 16), (10, 9, 2, 2), constant=False, **in_blocks(16, 16)),
    "one axis": conv((1, 1, 20, 16), (16, 16, 5), padding=(2, 2), **in_blocks(16, 16)),
    "tf32": conv(
        (1, 3, 5, 5, 4), (16, 12, 3, 3), True, padding=P, dtype="float32", multiply_as="tf32",
        **in_blocks(4, 4),
    ),
    "tf32, plain": conv((1, 3, 9, 9), (18, 3, 3, 3), padding=P, dtype="float32", multiply_as="tf32"),
    "int8, a border": conv(
        (1, 2, 5, 5, 16), (24, 32, 3, 3), padding=P, dtype="int8", out_dtype="int32", pad_value=-7,
        **in_blocks(16, 8),
    ),
    "int8, a border, plain": conv(
        (1, 3, 9, 7), (18, 3, 3, 3), padding=P, dtype="int8", out_dtype="int32", pad_value=3, strides=(2, 1),
    ),
    "int8": conv((1, 1, 5, 5, 32), (16, 32, 3, 3), dtype="int8", out_dtype="int32", **in_blocks(32, 16)),
}  # fmt: skip
FEW = ("all channels of a pixel", "plain", "tf32", "int8, a border")
"""Those that are always tested: g++ takes long for each."""


def rounded_input() -> Kernel:
    """As a network's first convolution, which reads float32."""
    builder = GraphBuilder()
    x = builder.op("cast", builder.input("data", (2, 3, 9, 9)), dtype="float16")
    weight = builder.input("weight", (24, 3, 3, 3), "float16")
    result = builder.op("conv2d", x, weight, strides=(2, 2), padding=P, out_layout="NCHW8c")
    return Kernel(builder.build(result), frozenset({1}))


def test_first_convolutions_round_what_they_gather(gpu: Target) -> None:
    assert_computes(rounded_input(), gpu, TEMPLATE, SMALL)


FLOAT8 = {
    "blocks": conv(
        (2, 2, 5, 7, 16), (24, 32, 3, 3), padding=P, dtype="float8_e4m3fn", out_dtype="float32",
        **in_blocks(16, 8),
    ),
    "plain": conv((1, 5, 9, 9), (18, 5, 3, 3), padding=P, dtype="float8_e5m2", out_dtype="float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["blocks", pytest.param("plain", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("gpu")
def test_float8(name: str) -> None:
    assert_computes(FLOAT8[name], TARGETS["cuda:sm_89"], TEMPLATE, SMALL)


def test_float8_needs_instructions_for_it() -> None:
    """`mma.sync` has none on sm_90a, where warp groups do."""
    targets = [TARGETS[f"cuda:{arch}"] for arch in ("sm_80", "sm_89", "sm_90", "sm_90a")]
    for name, kernel in FLOAT8.items():
        found = [template_for(kernel, target).name for target in targets]
        expected = {"plain": "conv_cuda", "blocks": "direct_cuda"}[name]
        assert found == [expected, TEMPLATE, expected, "conv_wgmma_cuda"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
def test_numbers(name: str, gpu: Target) -> None:
    assert_computes(KERNELS[name], gpu, TEMPLATE, SMALL)


STORED = {
    "blocks, two images": (
        conv((2, 1, 5, 7, 16), (64, 16, 3, 3), True, padding=P, **in_blocks(16, 32)), {"warp_columns": 32},
    ),
    "all channels of a pixel": (
        conv((1, 1, 6, 7, 16), (40, 16, 1, 1), True, out_dtype="float32", **in_blocks(16, 40)), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_output_is_stored_in_lines(name: str, gpu: Target) -> None:
    kernel, knobs = STORED[name]
    assert_computes(kernel, gpu, TEMPLATE, {**SMALL, **knobs, "block_columns": 64, "lines": 1})


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.usefixtures("real_compiler")
def test_large_tiles_do_not_spill(lines: int, arch: str) -> None:
    target = TARGETS[f"cuda:{arch}"]
    kernel = conv((32, 4, 28, 28, 64), (256, 256, 3, 3), True, padding=P, **in_blocks(64, 64))
    knobs = {"block_rows": 256, "block_columns": 128, "warp_rows": 64, "warp_columns": 64, "stages": 3}
    template = TEMPLATES[TEMPLATE]
    config = {
        **template.space(kernel, target).default,
        **knobs,
        "depth_chunks": 4,
        "splits": 1,
        "streamed": 0,
    }
    template.space(kernel, target).check({**config, "lines": lines})
    scheduled = template.apply(kernel, target, {**config, "lines": lines})
    code = device_code(scheduled.function, "kernel", target)
    assert ("tcomp_put_words" in code.source) is bool(lines)
    assert all(found.spilled_bytes == 0 for found in compile_cubin(code.source, arch).resources.values())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["plain", "chunks", "lines"])
@pytest.mark.parametrize(
    ("dtype", "arch"),
    [("int8", "sm_80"), ("int8", "sm_90a"), ("float8_e4m3fn", "sm_89"), ("float8_e5m2", "sm_90a")],
)
@pytest.mark.usefixtures("real_compiler")
def test_defaults_of_8_bits_do_not_spill(dtype: str, arch: str, layout: str) -> None:
    """3x3 on 32 images of 256 channels, around which are other numbers than zero where integers are."""
    target = TARGETS[f"cuda:{arch}"]
    block = {"plain": 0, "chunks": 16, "lines": 128}[layout]
    data = (32, 256 // block, 28, 28, block) if block else (32, 256, 28, 28)
    blocks = in_blocks(block, block) if block else {}
    wide, around = ("int32", 5) if dtype == "int8" else ("float32", 0)
    kernel = conv(data, (256, 256, 3, 3), dtype=dtype, out_dtype=wide, padding=P, pad_value=around, **blocks)
    code = device_code(schedule(kernel, target).function, "kernel", target)
    assert ("tcomp_or_border" in code.source) is bool(around)
    cubin = compile_cubin(code.source, arch)
    assert all(found.spilled_bytes == 0 for found in cubin.resources.values())
    assert cubin.losses == ()


@pytest.mark.slow
def test_parts_of_the_depth(gpu: Target) -> None:
    assert_computes(KERNELS["plain"], gpu, TEMPLATE, {**SMALL, "splits": 2})
