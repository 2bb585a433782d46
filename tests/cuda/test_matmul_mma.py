"""Matrix products on tensor cores compute what the reference does, on an emulated GPU."""

from __future__ import annotations

import numpy as np
import pytest
from mma_kernels import SMALL, assert_computes, matmul

from tcomp.codegen.jit import build_scheduled
from tcomp.relay.evaluate import evaluate
from tcomp.target.target import Target
from tcomp.tensor.template import TEMPLATES

KERNELS = {
    "whole tiles": (matmul((64, 64), (64, 128)), {"block_columns": 128, "warp_columns": 64}),
    "ragged": (matmul((50, 72), (72, 40), "bias", "relu"), {}),
    "odd columns, packed": (matmul((33, 40), (40, 27), "bias", constant=True), {}),
    "transposed": (matmul((72, 40), (56, 72), transpose_a=True, transpose_b=True), {"stages": 2}),
    "bias, gelu, residual": (matmul((48, 64), (64, 32), "bias", "gelu", "residual", constant=True), {}),
    "transposed output": (matmul((40, 32), (32, 48), "relu", "transpose"), {}),
    "batch": (matmul((3, 20, 24), (3, 24, 40)), {}),
    "batch of one operand": (matmul((2, 1, 20, 24), (3, 24, 24), "relu"), {}),
    "rows of several matrices": (matmul((3, 20, 40), (40, 24), "residual", constant=True), {}),
    "parts of the depth": (matmul((40, 200), (200, 40), "bias", "relu"), {"splits": 3}),
    "wide steps": (matmul((40, 200), (200, 40)), {"depth_chunks": 8, "stages": 4}),
    "one row": (matmul((1, 64), (64, 200), "bias", constant=True), {"block_rows": 16, "warp_rows": 16}),
    "not aligned": (matmul((20, 30), (30, 21), "relu"), {}),
    "computed operands": (matmul((20, 32), (32, 24), prologue="relu"), {}),
    "float32 sums": (matmul((20, 32), (32, 24), "bias", out_dtype="float32"), {}),
    "bfloat16": (matmul((40, 64), (64, 40), "bias", "relu", dtype="bfloat16"), {}),
    "tf32": (matmul((40, 72), (72, 40), "bias", "relu", dtype="float32", multiply_as="tf32"), {}),
    "tf32, packed": (
        matmul((33, 40), (40, 27), dtype="float32", multiply_as="tf32", constant=True), {"splits": 2},
    ),
    "int8": (matmul((40, 96), (96, 40), dtype="int8", out_dtype="int32"), {}),
    "int8, packed": (
        matmul((40, 100), (100, 33), dtype="int8", out_dtype="int32", constant=True), {"splits": 2},
    ),
}  # fmt: skip


FEW = ("whole tiles", "ragged", "transposed", "parts of the depth", "tf32", "int8, packed")
"""Those that are always tested: g++ takes long for each."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
def test_numbers(name: str, gpu: Target) -> None:
    kernel, knobs = KERNELS[name]
    assert_computes(kernel, gpu, "matmul_mma_cuda", {**SMALL, **knobs})


def test_tf32_is_the_nearest_number(gpu: Target) -> None:
    """Operands are rounded, not cut off, packed or as they are in memory; NaN and infinity stay."""
    kernel = matmul((20, 32), (32, 24), dtype="float32", multiply_as="tf32", constant=True)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.static_shape).astype(np.float32) for v in kernel.body.inputs]
    arrays[0][3, 5], arrays[0][7, 9] = np.frombuffer(b"\xff\xff\xff\x7f", np.float32)[0], np.inf
    template = TEMPLATES["matmul_mma_cuda"]
    (found,) = build_scheduled(kernel, template.apply(kernel, gpu, {**SMALL, "stages": 2}), gpu)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    assert np.isnan(expected[3]).all()
    assert np.isinf(expected[7]).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
