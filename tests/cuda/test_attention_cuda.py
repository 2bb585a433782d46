"""Attention on GPUs: numbers on an emulated one."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for

SMALL = {"tile_m": 32, "tile_n": 32, "thread_m": 4}


def attention(
    *shapes: tuple[int, ...], dtype: str = "float32", scale: float = 0.3, after: str = "", causal: int = 0
) -> Kernel:
    builder = GraphBuilder()
    inputs = [builder.input(f"x{i}", shape, dtype) for i, shape in enumerate(shapes)]
    result = builder.op("attention", *inputs, scale=scale, causal=causal)
    if after == "heads last":
        result = builder.op("transpose", builder.op("relu", result), axes=(1, 0, 2))
    return Kernel(builder.build(result))


def arrays_of(kernel: Kernel) -> list[Array]:
    generator = np.random.default_rng(0)
    types = [v.type for v in kernel.body.inputs]
    return [generator.standard_normal(t.static_shape).astype(numpy_dtype(t.dtype)) for t in types]


def assert_matches(kernel: Kernel, arrays: list[Array], target: Target, config: dict[str, int]) -> None:
    assert template_for(kernel, target).name == "attention_cuda"
    (found,), (expected,) = build_kernel(kernel, target, config)(arrays), evaluate(kernel.body, arrays)
    tolerance = {"float16": 4e-3}.get(kernel.body.inputs[0].dtype, 4e-6)
    assert np.isfinite(expected).all()
    assert np.abs(found.astype(np.float64) - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


CASES = {
    "whole tiles": (attention((2, 32, 64), (2, 64, 64), (2, 64, 64)), SMALL),
    "ragged": (attention((37, 20), (45, 20), (45, 36)), SMALL),
    "grouped heads, mask": (attention((2, 4, 9, 16), (2, 1, 33, 16), (2, 1, 33, 32), (2, 1, 1, 33)), SMALL),
    "larger tiles": (
        attention((70, 16), (100, 16), (100, 32), (70, 100)),
        {**SMALL, "tile_m": 64, "tile_n": 64},
    ),
    "wide heads": (attention((1, 40, 128), (1, 50, 128), (1, 50, 128)), SMALL),
    "transposed result": (attention((3, 12, 16), (3, 20, 16), (3, 20, 32), after="heads last"), SMALL),
    "half precision": (attention((2, 20, 64), (2, 40, 64), (2, 40, 64), dtype="float16"), SMALL),
}


FAST = ("ragged", "grouped heads, mask", "half precision")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in CASES]
)
def test_attention_is_that_of_the_reference(name: str, gpu: Target) -> None:
    kernel, config = CASES[name]
    assert_matches(kernel, arrays_of(kernel), gpu, config)


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min])
def test_masks_that_hide_whole_tiles(hidden: float, gpu: Target) -> None:
    """A causal mask, and a first tile of keys that no row sees."""
    kernel = attention((1, 48, 16), (1, 80, 16), (1, 80, 32), (48, 80))
    arrays = arrays_of(kernel)
    rows, keys = np.arange(48)[:, None], np.arange(80)[None]
    arrays[3] = np.where((keys >= 33) & (keys <= rows + 33), 0, hidden).astype(np.float32)
    assert_matches(kernel, arrays, gpu, SMALL)
