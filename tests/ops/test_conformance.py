"""Every operator: type rule, numpy reference and compiled kernel agree on each of its samples."""

from __future__ import annotations

import pytest
from op_samples import arrays_of, check, graph_of_sample, makes_kernels
from runnable import LEVELS, RUNNABLE, WIDEST

from tcomp.codegen.jit import build_kernel
from tcomp.relay.evaluate import evaluate
from tcomp.relay.op import OPS, Op
from tcomp.relay.types import numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel

CASES = [pytest.param(op, i, id=f"{op.name}-{i}") for op in OPS.values() for i in range(len(op.samples))]

KERNEL_CASES = [
    pytest.param(
        op,
        i,
        target,
        id=f"{op.name}-{i}-{target}",
        marks=[pytest.mark.slow] if i or target != WIDEST.name else [],
    )
    for op in OPS.values()
    if makes_kernels(op)
    for i in range(len(op.samples))
    for target in LEVELS
    if i == 0 or target == WIDEST.name
]


@pytest.mark.parametrize("name", [n for n in OPS if n != "fused"])
def test_operator_has_samples(name: str) -> None:
    assert OPS[name].samples, f"`{name}` has no sample; add one to its declaration"


@pytest.mark.parametrize(("op", "index"), CASES)
def test_reference_has_the_inferred_types(op: Op, index: int) -> None:
    sample = op.samples[index]
    graph = graph_of_sample(op, sample)
    results = evaluate(graph, arrays_of(op, sample))
    for value, result in zip(graph.outputs, results, strict=True):
        assert (value.type.static_shape, numpy_dtype(value.dtype)) == (result.shape, result.dtype)


@pytest.mark.parametrize(("op", "index", "target"), KERNEL_CASES)
def test_kernel_computes_the_reference(op: Op, index: int, target: str) -> None:
    sample = op.samples[index]
    graph = graph_of_sample(op, sample)
    arrays = arrays_of(op, sample)
    runner = build_kernel(Kernel(graph, frozenset(sample.constant)), TARGETS[target])
    if target in RUNNABLE:
        check(runner(arrays), evaluate(graph, arrays), sample)
    else:
        assert runner.source("asm")
