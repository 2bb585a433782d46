"""The attention template against the operator's own reference."""

from __future__ import annotations

import random

import numpy as np
import pytest
from runnable import WIDEST

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for


def attention(
    *shapes: tuple[int, ...],
    dtype: str = "float32",
    relu: bool = False,
    transposed: bool = False,
    causal: int = 0,
) -> Kernel:
    """An attention kernel; `transposed` reads the queries from [..., D, S] through a transpose."""
    builder = GraphBuilder()
    values = [builder.input(f"x{i}", shape, dtype) for i, shape in enumerate(shapes)]
    if transposed:
        axes = (*range(len(shapes[0]) - 2), len(shapes[0]) - 1, len(shapes[0]) - 2)
        values[0] = builder.op("transpose", values[0], axes=axes)
    result = builder.op("attention", *values, scale=0.3, causal=causal)
    return Kernel(builder.build(builder.op("relu", result) if relu else result))


def assert_matches(kernel: Kernel, config: Config | None = None, target: str = WIDEST.name) -> None:
    generator = np.random.default_rng(0)
    arrays = [
        generator.standard_normal(v.type.static_shape).astype(numpy_dtype(v.dtype))
        for v in kernel.body.inputs
    ]
    (found,) = build_kernel(kernel, TARGETS[target], config)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    tolerance = {"float16": 5e-3, "bfloat16": 4e-2}.get(kernel.body.outputs[0].dtype, 1e-5)
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance
    )


CASES = {
    "whole tiles": attention((2, 3, 32, 16), (2, 3, 32, 16), (2, 3, 32, 32)),
    "ragged": attention((2, 37, 20), (2, 45, 20), (2, 45, 23)),
    "mask": attention((2, 3, 20, 16), (2, 3, 24, 16), (2, 3, 24, 16), (2, 1, 1, 24)),
    "no batch, square mask": attention((20, 16), (24, 16), (24, 16), (20, 24)),
    "shared keys": attention((2, 4, 5, 8), (2, 1, 5, 8), (2, 1, 5, 8)),
    "small": attention((3, 4), (5, 4), (5, 2)),
    "epilogue": attention((2, 20, 16), (2, 20, 16), (2, 20, 16), relu=True),
    "computed queries": attention((2, 16, 20), (2, 20, 16), (2, 20, 16), transposed=True),
    "float64": attention((2, 20, 16), (2, 20, 16), (2, 20, 16), dtype="float64"),
    "float16": attention((2, 20, 16), (2, 20, 16), (2, 20, 16), dtype="float16"),
    "bfloat16": attention((2, 20, 16), (2, 20, 16), (2, 20, 16), dtype="bfloat16"),
}


@pytest.mark.parametrize("case", CASES)
def test_default_matches_reference(case: str) -> None:
    assert template_for(CASES[case], WIDEST).id == "attention_cpu@2"
    assert_matches(CASES[case])


def test_narrow_vectors_match_reference() -> None:
    assert_matches(CASES["ragged"], target="x86-64-v3")


def test_random_configs_match_reference() -> None:
    kernel = CASES["ragged"]
    space = template_for(kernel, WIDEST).space(kernel, WIDEST)
    rng = random.Random(0)
    for _ in range(4):
        assert_matches(kernel, space.random(rng))


@pytest.mark.parametrize("parallel", ["no", "batch", "tiles"])
def test_heads_are_read_and_written_where_they_lie(parallel: str) -> None:
    builder = GraphBuilder()
    x = builder.input("qkv", (2, 37, 9, 32))
    parts = [
        builder.op("slice", x, begin=(0, 0, at, 0), end=(2, 37, at + 3, 32), strides=(1, 1, 1, 1))
        for at in (0, 3, 6)
    ]
    heads = [builder.op("transpose", part, axes=(0, 2, 1, 3)) for part in parts]
    mask = builder.input("mask", (2, 1, 1, 37))
    result = builder.op("attention", *heads, mask, scale=0.2)
    kernel = Kernel(builder.build(builder.op("relu", builder.op("transpose", result, axes=(0, 2, 1, 3)))))
    default = template_for(kernel, WIDEST).space(kernel, WIDEST).default
    assert_matches(kernel, {**default, "parallel": parallel})


def test_rows_longer_than_the_stack_allows() -> None:
    assert_matches(attention((5, 16), (5000, 16), (5000, 16)))
