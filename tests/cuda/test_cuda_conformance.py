"""Every operator's kernel for GPUs computes what the reference does, on an emulated one."""

from __future__ import annotations

import pytest
from op_samples import arrays_of, check, graph_of_sample, makes_kernels

from tcomp.codegen.jit import build_kernel
from tcomp.relay.evaluate import evaluate
from tcomp.relay.op import OPS, FusionKind, Op
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel

pytestmark = pytest.mark.emulated

TYPES = ("exp", "add", "cast", "where", "not_equal")
"""Elementwise operators of which every sample counts; the others have the same template and types."""
CASES = [
    pytest.param(op, i, id=f"{op.name}-{i}", marks=[pytest.mark.slow] if i or is_elementwise else [])
    for op in OPS.values()
    if makes_kernels(op)
    for is_elementwise in [op.kind is FusionKind.ELEMENTWISE]
    for i in range(len(op.samples))
    if i == 0 or not is_elementwise or op.name in TYPES
]


@pytest.mark.parametrize(("op", "index"), CASES)
def test_kernel_computes_the_reference(op: Op, index: int, gpu: Target) -> None:
    sample = op.samples[index]
    graph = graph_of_sample(op, sample)
    arrays = arrays_of(op, sample)
    runner = build_kernel(Kernel(graph, frozenset(sample.constant)), gpu)
    check(runner(arrays), evaluate(graph, arrays), sample)
