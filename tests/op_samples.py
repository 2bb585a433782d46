"""Graphs of one operator, made of the samples that operators declare, and their inputs."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from tcomp.relay.builder import make_node
from tcomp.relay.graph import Graph, Value
from tcomp.relay.op import FusionKind, Op, Sample
from tcomp.relay.types import Array, TensorType, numpy_dtype


def makes_kernels(op: Op) -> bool:
    """Whether the operator ever becomes a kernel: it is no view, and has a tensor expression."""
    return op.compute is not None and op.kind is not FusionKind.VIEW


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
