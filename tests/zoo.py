"""How tests get real models: those that `scripts/models.py` has put into `models/`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models import MODELS, ROOT, TESTED
from tcomp.codegen.artifact import Report
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array, numpy_dtype
from tcomp.runtime import Model


@dataclass(frozen=True)
class CompiledModel:
    """A model of the zoo, compiled and loaded."""

    report: Report
    model: Model
    precision: str


def parameters(names: Iterable[str] = MODELS) -> list[Any]:
    """Test parameters: the models of the slow tests, and all others, which only `-m zoo` selects."""
    return [pytest.param(n, marks=pytest.mark.slow if n in TESTED else pytest.mark.zoo) for n in names]


def model_path(name: str, suffix: str = ".onnx") -> Path:
    """A file of a model; the test fails when it has not been fetched."""
    path = ROOT / "models" / f"{name}{suffix}"
    if not path.exists():
        pytest.fail(
            f"models/{path.name} is missing: python scripts/models.py {name}, or --tests", pytrace=False
        )
    return path


def resized(name: str, shape: tuple[int, ...], folder: Path) -> Path:
    """The file, in `folder`, of a model with one input, for inputs of another shape than it was exported for.

    The shapes of its tensors between layers follow from that.
    """
    model, path = onnx.load(model_path(name)), folder / f"{name}.onnx"
    (entry,) = model.graph.input
    for dim, extent in zip(entry.type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = extent
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def example_inputs(name: str, graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Random inputs that suit the model: floats in 0..1, valid indices, a mask of ones."""
    generator = np.random.default_rng(seed)
    integers = MODELS[name].integers
    inputs: dict[str, Array] = {}
    for value in graph.inputs:
        shape = value.type.static_shape
        if value.name == "attention_mask":
            data = np.ones(shape)
        elif value.name in integers:
            data = generator.integers(0, integers[value.name], shape)
        else:
            data = generator.uniform(0, 1, shape)
        inputs[value.name] = data.astype(numpy_dtype(value.dtype))
    return inputs
