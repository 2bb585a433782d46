"""Convolutions in plain layout, and transposed convolutions, against the operators' own references."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.op import OPS
from tcomp.relay.types import TensorType
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for

TEMPLATES = {
    "conv1d": "conv_plain_cpu",
    "conv2d": "conv_plain_cpu",
    "conv3d": "conv_plain_cpu",
    "conv1d_transpose": "conv_transpose_cpu",
    "conv2d_transpose": "conv_transpose_cpu",
    "conv3d_transpose": "conv_transpose_cpu",
}
CASES = [
    (op, sample)
    for op in TEMPLATES
    for sample in OPS[op].samples
    if sample.attrs.get("out_layout", "NCHW") == "NCHW" and not sample.attrs.get("multiply_as")
]
"""Operands are rounded for GPUs only."""


@pytest.fixture(scope="module")
def target() -> Target:
    return TARGETS["x86-64-v3"]


def check(
    op: str, types: tuple[TensorType, ...], attrs: dict[str, object], tolerance: float, target: Target
) -> None:
    builder = GraphBuilder()
    inputs = [builder.input(f"x{i}", t.static_shape, t.dtype) for i, t in enumerate(types)]
    kernel = Kernel(builder.build(builder.op("relu", builder.op(op, *inputs, **attrs))), frozenset({1}))
    assert template_for(kernel, target).name == TEMPLATES[op]
    generator = np.random.default_rng(0)
    arrays = [
        (generator.uniform(-4, 4, t.static_shape)).astype(t.dtype) if t.dtype != "bfloat16" else None
        for t in types
    ]
    assert all(a is not None for a in arrays)
    (found,) = build_kernel(kernel, target)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    scale = max(1.0, float(np.abs(expected.astype(np.float64)).max()))
    assert np.abs(found.astype(np.float64) - expected.astype(np.float64)).max() <= tolerance * scale


@pytest.mark.parametrize(("op", "sample"), [c for c in CASES if c[1].types[0].dtype != "bfloat16"])
def test_samples(op: str, sample: object, target: Target) -> None:
    tolerance = 5e-3 if sample.types[0].dtype == "float16" else 1e-5
    check(op, sample.types, dict(sample.attrs), tolerance, target)


@pytest.mark.parametrize(
    ("op", "data", "weight", "attrs"),
    [
        ("conv2d", (1, 8, 11, 19), (24, 8, 3, 3), {"padding": (1, 1, 1, 1)}),
        ("conv2d", (1, 8, 11, 21), (8, 1, 5, 5), {"padding": (2,) * 4, "groups": 8, "strides": (2, 2)}),
        ("conv2d", (2, 16, 5, 3), (12, 16, 1, 1), {}),
        ("conv2d_transpose", (1, 8, 9, 10), (8, 12, 4, 4), {"strides": (2, 2), "padding": (1, 1, 1, 1)}),
        ("conv2d_transpose", (1, 4, 5, 6), (4, 3, 2, 2), {"strides": (3, 3), "output_padding": (1, 2)}),
        ("conv2d_transpose", (1, 4, 5, 17), (4, 3, 3, 3), {"dilation": (2, 2), "strides": (2, 3)}),
    ],
)
def test_wider_shapes(
    op: str, data: tuple[int, ...], weight: tuple[int, ...], attrs: dict[str, object], target: Target
) -> None:
    check(op, (TensorType(data), TensorType(weight)), attrs, 1e-5, target)
