"""Matrix products on tensor cores: numbers on an emulated GPU, banks, what nvcc makes of the defaults."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attr, Value
from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import template_for

TEMPLATE = "matmul_mma_cuda"
SMALL = {
    "block_rows": 32, "block_columns": 32, "warp_rows": 32, "warp_columns": 16, "depth_chunks": 4,
    "stages": 3, "splits": 1, "group": 2,
}  # fmt: skip
"""Two warps: the emulated GPU's threads take turns."""


def matmul(
    a: tuple[int, ...],
    b: tuple[int, ...],
    *epilogue: str,
    dtype: str = "float16",
    constant: bool = False,
    prologue: str = "",
    **attrs: Attr,
) -> Kernel:
    """A product followed by unary operators, `bias` (one a column), `residual` (full)."""
    builder = GraphBuilder()
    left, right = builder.input("a", a, dtype), builder.input("b", b, dtype)
    if prologue:
        left, right = builder.op(prologue, left), builder.op(prologue, right)
    result: Value = builder.op("matmul", left, right, **attrs)
    for name in epilogue:
        if name in ("bias", "residual"):
            shape = result.type.static_shape
            other = builder.input(name, shape if name == "residual" else shape[-1:], result.dtype)
            result = builder.op("add", result, other)
        elif name == "transpose":
            order = tuple(reversed(range(result.type.rank)))
            result = builder.op("transpose", result, axes=order)
        else:
            result = builder.op(name, result)
    return Kernel(builder.build(result), frozenset({1}) if constant else frozenset())


def arrays_for(kernel: Kernel) -> list[Array]:
    """Small integers: sums of their products are exact in any order."""
    generator = np.random.default_rng(0)
    return [
        generator.integers(-2, 3, v.type.static_shape).astype(numpy_dtype(v.dtype))
        for v in kernel.body.inputs
    ]


def assert_computes(kernel: Kernel, gpu: Target, template: str = TEMPLATE, **knobs: int) -> None:
    assert template_for(kernel, gpu).name == template
    arrays = arrays_for(kernel)
    config = {**template_for(kernel, gpu).space(kernel, gpu).default, **SMALL, **knobs}
    (found,) = build_kernel(kernel, gpu, config)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.astype("float64"), expected.astype("float64"), rtol=2e-3, atol=1e-6)


KERNELS = {
    "whole tiles": (matmul((64, 64), (64, 64)), {}),
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
    "int8": (matmul((40, 96), (96, 40), dtype="int8", out_dtype="int32"), {}),
    "int8, packed": (
        matmul((40, 100), (100, 33), dtype="int8", out_dtype="int32", constant=True), {"splits": 2},
    ),
}  # fmt: skip


FEW = ("ragged", "transposed", "parts of the depth", "int8, packed")
"""Those that are always tested: g++ takes long for each."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
def test_numbers(name: str, gpu: Target) -> None:
    kernel, knobs = KERNELS[name]
    assert_computes(kernel, gpu, **knobs)
