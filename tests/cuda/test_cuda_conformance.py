"""Every operator's kernel for GPUs computes what the reference does, on an emulated one."""

from __future__ import annotations

import pytest
from test_conformance import NOT_KERNELS, arrays_of, check, graph_of_sample

from tcomp.codegen.jit import build_kernel
from tcomp.relay.evaluate import evaluate
from tcomp.relay.op import OPS, Op
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel

CASES = [
    pytest.param(op, i, id=f"{op.name}-{i}", marks=[pytest.mark.slow] if i else [])
    for op in OPS.values()
    if op.compute is not None and op.kind not in NOT_KERNELS
    for i in range(len(op.samples))
]


@pytest.mark.parametrize(("op", "index"), CASES)
def test_kernel_computes_the_reference(op: Op, index: int, gpu: Target) -> None:
    sample = op.samples[index]
    graph = graph_of_sample(op, sample)
    arrays = arrays_of(op, sample)
    runner = build_kernel(Kernel(graph, frozenset(sample.constant)), gpu)
    check(runner(arrays), evaluate(graph, arrays), sample)
