"""Matrix products by groups of warps compute what the reference does, on an emulated GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mma_kernels import assert_computes, matmul, rows_of

from tcomp.codegen.jit import build_scheduled
from tcomp.relay.evaluate import evaluate
from tcomp.target.target import TARGETS
from tcomp.tensor.template import TEMPLATES
from tcomp.tensor.tensor_cores.wgmma_plan import WgmmaPlan

TEMPLATE = "matmul_wgmma_cuda"
SMALL = {
    "block_rows": 64,
    "block_columns": 64,
    "consumers": 1,
    "stages": 2,
    "splits": 1,
    "group": 2,
    "cluster": 1,
}
TWO = {"block_rows": 128, "consumers": 2}
KERNELS = {
    "two consumers, wide": (matmul((128, 320), (320, 256), constant=True), {**TWO, "block_columns": 256}),
    "ragged": (matmul((90, 72), (72, 136), "bias", "relu"), {"stages": 3}),
    "odd columns, packed": (matmul((33, 40), (40, 67), "bias", constant=True), {}),
    "transposed": (matmul((72, 200), (96, 72), transpose_a=True, transpose_b=True), {"block_columns": 128}),
    "rows and columns along memory": (
        matmul((200, 136), (200, 264), transpose_a=True), {**TWO, "block_rows": 256, "block_columns": 128},
    ),
    "three pieces of rows": (matmul((192, 64), (64, 64)), {"block_rows": 192}),
    "bias, gelu, residual": (matmul((48, 64), (64, 32), "bias", "gelu", "residual", constant=True), {}),
    "transposed output": (matmul((40, 32), (32, 48), "relu", "transpose"), {}),
    "batch": (matmul((3, 20, 24), (3, 24, 40)), {}),
    "batch of one operand": (matmul((2, 1, 20, 24), (3, 24, 24), "relu"), {}),
    "rows of several matrices": (matmul((3, 20, 40), (40, 24), "residual", constant=True), {}),
    "rows of several matrices, transposed": (matmul((3, 40, 24), (40, 24), transpose_a=True), {}),
    "parts of the depth": (matmul((40, 440), (440, 40), "bias", "relu"), {"splits": 3}),
    "two blocks share columns": (
        matmul((2, 250, 200), (2, 200, 136), "bias"), {"block_columns": 128, "cluster": 2},
    ),
    "four blocks share columns along memory": (
        matmul((500, 200), (200, 256)), {**TWO, "block_columns": 256, "group": 4, "cluster": 4},
    ),
    "one row": (matmul((1, 64), (64, 200), "bias", constant=True), {}),
    "not aligned": (matmul((20, 30), (30, 21), "relu"), {}),
    "computed operands": (matmul((20, 32), (32, 24), prologue="relu"), {}),
    "float32 sums": (matmul((20, 32), (32, 24), "bias", out_dtype="float32"), {}),
    "bfloat16": (matmul((40, 64), (64, 40), "bias", "relu", dtype="bfloat16"), {}),
    "tf32": (
        matmul((70, 76), (76, 130), "bias", "relu", dtype="float32", multiply_as="tf32"), {"stages": 3},
    ),
    "tf32, packed": (
        matmul((40, 130), (130, 33), dtype="float32", multiply_as="tf32", constant=True), {"splits": 2},
    ),
    "tf32, rows along memory": (
        matmul((40, 36), (40, 24), transpose_a=True, dtype="float32", multiply_as="tf32"), {},
    ),
    "int8": (matmul((70, 288), (288, 130), dtype="int8", out_dtype="int32"), {"block_columns": 192}),
    "int8, packed": (
        matmul((40, 300), (300, 33), dtype="int8", out_dtype="int32", constant=True), {"splits": 2},
    ),
    "float8_e4m3fn": (
        matmul((70, 288), (288, 130), "bias", dtype="float8_e4m3fn", out_dtype="float32"), {},
    ),
    "float8_e5m2, packed": (
        matmul((40, 300), (300, 33), dtype="float8_e5m2", out_dtype="float32", constant=True), {"splits": 2},
    ),
}  # fmt: skip
FEW = (
    "two consumers, wide", "ragged", "rows and columns along memory", "batch", "parts of the depth",
    "two blocks share columns", "tf32", "float8_e4m3fn",
)  # fmt: skip
"""Those that are always tested: g++ takes long for each."""
HOPPER = TARGETS["cuda:sm_90a"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in KERNELS]
)
@pytest.mark.usefixtures("gpu")
def test_numbers(name: str) -> None:
    kernel, knobs = KERNELS[name]
    assert_computes(kernel, HOPPER, TEMPLATE, {**SMALL, **knobs})


@pytest.mark.usefixtures("gpu")
def test_tf32_is_the_nearest_number() -> None:
    """Copies round, and what is packed is rounded before."""
    kernel = matmul((20, 32), (32, 24), dtype="float32", multiply_as="tf32", constant=True)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.static_shape).astype(np.float32) for v in kernel.body.inputs]
    arrays[0][7, 9] = np.inf
    scheduled = TEMPLATES[TEMPLATE].apply(kernel, HOPPER, SMALL)
    (found,) = build_scheduled(kernel, scheduled, HOPPER)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    assert np.isinf(expected[7]).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("gpu")
def test_blocks_take_several_tiles() -> None:
    """More tiles than run at once, whose number is no multiple; steps are no multiple of the stages."""
    assert HOPPER.gpu is not None
    few = replace(
        HOPPER, gpu=replace(HOPPER.gpu, processors=1, block_shared_bytes=127 * 1024, shared_bytes=128 * 1024)
    )
    kernel, knobs = matmul((190, 320), (320, 190), "bias"), {**SMALL, "stages": 3, "group": 1}
    assert WgmmaPlan("float16", 1, 190, 190, 320, **knobs, output=rows_of(2)).blocks(few.gpu) == 2
    assert_computes(kernel, few, TEMPLATE, knobs)
