"""Real models through the whole pipeline with every default: their outputs are ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from zoo import MODELS, CompiledModel, example_inputs, model_path, parameters

from tcomp.api import load_model
from tcomp.verification import OnnxReference

TOLERANCE = 1e-4
"""Largest error allowed, as a share of the output's largest value."""
ARENA = 1.1
"""Largest arena allowed, as a multiple of the bytes alive at one time."""


@pytest.mark.parametrize("name", parameters())
def test_equals_onnxruntime(name: str, compiled: Callable[[str], CompiledModel]) -> None:
    inputs = example_inputs(name, load_model(model_path(name), MODELS[name].input_shapes))
    expected = OnnxReference(model_path(name)).run(inputs)
    results = compiled(name).model(*inputs.values())
    for result, reference in zip(results, expected, strict=True):
        assert result.shape == reference.shape
        assert result.dtype == reference.dtype
        scale = np.abs(reference).max()
        assert scale > 0
        assert np.abs(result.astype(np.float64) - reference).max() <= TOLERANCE * scale
    program = compiled(name).report.program
    assert program.arena_bytes <= ARENA * program.live_bytes
