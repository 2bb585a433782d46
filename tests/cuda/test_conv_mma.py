"""Convolutions on tensor cores compute what the reference does, on an emulated GPU."""

from __future__ import annotations

import pytest
from mma_kernels import SMALL, assert_computes, conv, in_blocks

from tcomp.target.target import Target

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
    "int8": conv((1, 1, 5, 5, 32), (16, 32, 3, 3), dtype="int8", out_dtype="int32", **in_blocks(32, 16)),
}  # fmt: skip
FEW = ("all channels of a pixel", "plain", "tf32")
"""Those that are always tested: g++ takes long for each."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
def test_numbers(name: str, gpu: Target) -> None:
    assert_computes(KERNELS[name], gpu, TEMPLATE, SMALL)


@pytest.mark.slow
def test_parts_of_the_depth(gpu: Target) -> None:
    assert_computes(KERNELS["plain"], gpu, TEMPLATE, {**SMALL, "splits": 2})
