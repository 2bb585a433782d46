"""Grouped convolution in blocked layout: groups of whole blocks, and narrow groups merged into vectors."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.layouts import to_layout
from tcomp.target.target import TARGETS
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "merged"),
    [
        (32, 32, 2, 1),
        (16, 16, 4, 2),
        (16, 32, 4, 1),
        (8, 24, 2, 2),
        (18, 6, 3, 3),
        (8, 16, 8, 4),
        (24, 24, 12, 4),
    ],
)
def test_matches_reference(inputs: int, outputs: int, groups: int, merged: int, constant: bool) -> None:
    target = TARGETS["x86-64-v3"]
    builder = GraphBuilder()
    data = builder.input("data", (1, -(-inputs // 8), 7, 9, 8))
    weight = builder.input("weight", (outputs, inputs // groups, 3, 3))
    node = builder.node(
        "conv2d", data, weight, groups=groups, padding=(1,) * 4, data_layout="NCHW8c", out_layout="NCHW8c"
    )
    kernel = Kernel(builder.build(node.output), frozenset({1} if constant else ()))
    assert Convolution.of(node).merged_groups == merged
    assert template_for(kernel, target).name == "conv_direct_cpu"
    generator = np.random.default_rng(0)
    arrays = [
        to_layout(generator.standard_normal((1, inputs, 7, 9), dtype=np.float32), "NCHW8c"),
        generator.standard_normal(weight.type.static_shape, dtype=np.float32),
    ]
    (found,) = build_kernel(kernel, target)(arrays)
    (expected,) = evaluate(kernel.body, arrays)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
