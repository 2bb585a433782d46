"""Every operator: type rule, numpy reference and compiled kernel agree on each of its samples."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import pytest
from runnable import LEVELS, RUNNABLE, WIDEST

from tcomp.codegen.jit import build_kernel
from tcomp.relay.builder import make_node
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.op import OPS, FusionKind, Op, Sample
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel

NOT_KERNELS = (FusionKind.VIEW,)
"""Operators of these kinds, and those without a tensor expression, never become a kernel."""
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
    if op.compute is not None and op.kind not in NOT_KERNELS
    for i in range(len(op.samples))
    for target in LEVELS
    if i == 0 or target == WIDEST.name
]


def random_array(type_: TensorType, low: float, high: float, rng: np.random.Generator) -> Array:
    """Values in [low, high]: whole numbers for integers, coin tosses for booleans."""
    if type_.dtype == "bool":
        return rng.random(type_.static_shape) < 0.5
    values = rng.uniform(low, high, type_.static_shape)
    if type_.dtype.startswith(("int", "uint")):
        values = np.round(np.maximum(values, 0) if type_.dtype.startswith("uint") else values)
    return np.asarray(values).astype(numpy_dtype(type_.dtype))


def arrays_of(op: Op, sample: Sample) -> list[Array]:
    rng = np.random.default_rng(crc32(op.name.encode()))
    random = [random_array(t, sample.low, sample.high, rng) for t in sample.types]
    return [sample.inputs.get(i, array) for i, array in enumerate(random)]


def graph_of_sample(op: Op, sample: Sample) -> Graph:
    inputs = tuple(Value(t, f"x{i}") for i, t in enumerate(sample.types))
    node = make_node(op.name, inputs, sample.attrs)
    return Graph(inputs, (node,), node.outputs)


def check(got: list[Array], wanted: list[Array], sample: Sample) -> None:
    for result, expected in zip(got, wanted, strict=True):
        assert result.dtype == expected.dtype
        wide = np.float64 if expected.dtype.kind in "fV" else expected.dtype
        np.testing.assert_allclose(
            result.astype(wide), expected.astype(wide), rtol=sample.rtol, atol=sample.atol, equal_nan=True
        )


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
