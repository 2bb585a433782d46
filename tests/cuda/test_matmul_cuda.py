"""Products on GPUs: numbers on an emulated one, whatever the shapes, types and tiles; no spilling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Value
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config

TILE: Config = {
    "tile_m": 32, "tile_n": 64, "tile_k": 8, "thread_m": 4, "thread_n": 4,
    "stages": 2, "split": 1, "vector": 4,
}  # fmt: skip


def matmul(
    a: tuple[int, ...], b: tuple[int, ...], *around: str, dtype: str = "float32", **attrs: bool
) -> Kernel:
    """A product with operators after it: `bias` (one a column), `residual` (full), unary ones."""
    builder = GraphBuilder()
    left, right = builder.input("a", a, dtype), builder.input("b", b, dtype)
    if "exp left" in around:
        left = builder.op("exp", left)
    result: Value = builder.op("matmul", left, right, **attrs)
    for name in (n for n in around if n != "exp left"):
        if name in ("bias", "residual"):
            shape = result.type.static_shape
            other = builder.input(name, shape if name == "residual" else shape[-1:], dtype)
            result = builder.op("add", result, other)
        elif name == "heads first":
            result = builder.op("transpose", result, axes=(0, 2, 1))
        else:
            result = builder.op(name, result)
    return Kernel(builder.build(result))


def assert_matches(kernel: Kernel, target: Target, config: Config | None = None) -> None:
    generator = np.random.default_rng(0)
    types = [v.type for v in kernel.body.inputs]
    arrays = [generator.standard_normal(t.static_shape).astype(numpy_dtype(t.dtype)) for t in types]
    (found,), (expected,) = build_kernel(kernel, target, config)(arrays), evaluate(kernel.body, arrays)
    tolerance = {"float16": 4e-3}.get(types[0].dtype, 2e-6)
    wide = expected.astype(np.float64)
    assert np.abs(found - wide).max() <= tolerance * max(1.0, np.abs(wide).max())


CASES = {
    "whole tiles": (matmul((32, 64), (64, 64), "bias", "relu"), {}),
    "ragged in all axes": (matmul((37, 19), (19, 70), "bias", "residual", "gelu"), {}),
    "ragged vectors": (matmul((36, 20), (20, 68), "residual"), {}),
    "both transposed": (matmul((24, 40), (72, 24), "relu", transpose_a=True, transpose_b=True), {}),
    "one buffer": (matmul((33, 40), (40, 65)), {"stages": 1}),
    "parts of the depth": (matmul((40, 100), (100, 36), "bias", "relu"), {"split": 4}),
    "deep tiles, narrow loads": (matmul((40, 96), (64, 96), transpose_b=True), {"tile_k": 32, "vector": 2}),
    "wide threads": (
        matmul((130, 24), (24, 132)),
        {"tile_m": 128, "tile_n": 128, "thread_m": 8, "thread_n": 8},
    ),
    "broadcast batches": (matmul((2, 1, 10, 12), (3, 12, 20), "residual"), {}),
    "left batch is rows": (matmul((2, 25, 12), (12, 20), "bias"), {}),
    "computed operand": (matmul((20, 12), (12, 36), "exp left"), {}),
    "transposed result": (matmul((2, 20, 12), (2, 12, 36), "relu", "heads first"), {"split": 2}),
    "half precision": (matmul((36, 40), (40, 68), "bias", "relu", dtype="float16"), {"split": 2}),
}


FAST = ("ragged in all axes", "parts of the depth", "half precision", "columns along the depth", "split rows")


def cases(names: Iterable[str]) -> list[object]:
    """All of them, those that are not `FAST` for long runs alone."""
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("name", cases(CASES))
def test_products_are_those_of_the_reference(name: str, gpu: Target) -> None:
    kernel, knobs = CASES[name]
    assert_matches(kernel, gpu, {**TILE, **knobs})


ROWS: Config = {
    "algorithm": "matmul_rows_cuda", "warps": 4, "columns": 2, "vector": 4, "unroll": 2, "split": 1,
}  # fmt: skip
FEW_ROWS = {
    "columns along the depth": (matmul((3, 640), (21, 640), "bias", "relu", transpose_b=True), {}),
    "ragged depth": (matmul((2, 131), (9, 131), transpose_b=True), {}),
    "parts of the depth": (matmul((4, 2048), (20, 2048), "bias", transpose_b=True), {"split": 2}),
    "rows along memory": (matmul((5, 48), (48, 132), "residual", "relu"), {}),
    "ragged rows": (matmul((1, 45), (45, 70), "bias"), {"columns": 4}),
    "split rows": (matmul((2, 600), (600, 36), "relu"), {"split": 2, "columns": 8}),
    "few columns": (matmul((40, 300), (300, 2), "bias"), {}),
    "a vector": (matmul((2, 30, 64), (64,)), {}),
    "batches": (matmul((3, 2, 64), (3, 40, 64), transpose_b=True), {}),
    "half precision": (matmul((2, 256), (20, 256), "bias", dtype="float16", transpose_b=True), {}),
}


@pytest.mark.parametrize("name", cases(FEW_ROWS))
def test_few_rows_or_columns(name: str, gpu: Target) -> None:
    kernel, knobs = FEW_ROWS[name]
    assert_matches(kernel, gpu, {**ROWS, **knobs})
