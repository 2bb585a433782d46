"""Matrix products on tensor cores compute what the reference does, on an emulated GPU."""

from __future__ import annotations

import numpy as np
import pytest
from mma_kernels import SMALL, assert_computes, matmul

from tcomp.codegen.jit import build_scheduled
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import FLOAT8, numpy_dtype
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
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
    "float8_e4m3fn": (
        matmul((40, 96), (96, 40), "bias", "relu", dtype="float8_e4m3fn", out_dtype="float32"), {},
    ),
    "float8_e5m2, packed": (
        matmul((40, 100), (100, 33), dtype="float8_e5m2", out_dtype="float32", constant=True), {"splits": 2},
    ),
}  # fmt: skip


ADA = TARGETS["cuda:sm_89"]
FEW = ("whole tiles", "ragged", "transposed", "parts of the depth", "tf32", "int8, packed", "float8_e4m3fn")
"""Those that are always tested: g++ takes long for each."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
def test_numbers(name: str, gpu: Target) -> None:
    kernel, knobs = KERNELS[name]
    target = ADA if name.startswith("float8") else gpu
    assert_computes(kernel, target, "matmul_mma_cuda", {**SMALL, **knobs})


@pytest.mark.parametrize("dtype", FLOAT8)
def test_operands_are_rounded_to_8_bits_on_their_way(dtype: str, gpu: Target) -> None:
    """One is computed for the product, the other is packed. Sums of such numbers are exact in float32."""
    builder = GraphBuilder()
    left = builder.op("cast", builder.input("a", (20, 50)), dtype=dtype)
    product = builder.op("matmul", left, builder.input("b", (50, 24), dtype), out_dtype="float32")
    kernel = Kernel(builder.build(product), frozenset({1}))
    rng = np.random.default_rng(0)
    arrays = [
        rng.uniform(-4, 4, v.type.static_shape).astype(numpy_dtype(v.dtype)) for v in kernel.body.inputs
    ]
    scheduled = TEMPLATES["matmul_mma_cuda"].apply(kernel, ADA, {**SMALL, "stages": 2})
    (found,) = build_scheduled(kernel, scheduled, ADA)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_products_of_8_bits_need_instructions_for_them() -> None:
    kernel, _ = KERNELS["float8_e4m3fn"]
    accepted = {
        arch: [
            name
            for name in ("matmul_mma_cuda", "matmul_wgmma_cuda")
            if TEMPLATES[name].accepts(kernel, TARGETS[f"cuda:{arch}"])
        ]
        for arch in ("sm_80", "sm_89", "sm_90", "sm_90a")
    }
    assert accepted == {
        "sm_80": [], "sm_89": ["matmul_mma_cuda"], "sm_90": [], "sm_90a": ["matmul_wgmma_cuda"],
    }  # fmt: skip


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
