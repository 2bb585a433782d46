"""Real models: the imported graph, evaluated in numpy, agrees with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import MODELS, example_inputs, model_path, parameters

from tcomp.frontend.onnx import import_onnx
from tcomp.relay.dims import symbols_of
from tcomp.relay.evaluate import evaluate
from tcomp.relay.verify import verify

ort = pytest.importorskip("onnxruntime")


def reference(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model_path(name)), options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True))


@pytest.mark.parametrize("name", parameters())
def test_model_equals_onnxruntime(name: str) -> None:
    """Within 1e-4 of each output's scale, outputs under the names of the file."""
    graph = import_onnx(model_path(name), MODELS[name].input_shapes)
    verify(graph)
    inputs = example_inputs(name, graph)
    expected = reference(name, inputs)
    results = dict(zip((v.name for v in graph.outputs), evaluate(graph, inputs), strict=True))
    assert list(results) == list(expected)
    for output, result in results.items():
        error = np.abs(result - expected[output]).max() / np.abs(expected[output]).max()
        assert error < 1e-4, f"{output}: {error}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "minilm_dynamo"])
def test_symbolic_dimensions(name: str) -> None:
    """One graph with symbolic batch and sequence serves several sizes."""
    graph = import_onnx(model_path(name))
    symbols = {s for v in graph.inputs for d in v.shape for s in symbols_of(d)}
    assert symbols == {"batch", "sequence"}
    verify(graph)
    for shape in ((1, 9), (3, 16)):
        ids = np.random.default_rng(0).integers(0, 30000, shape)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        (result,) = evaluate(graph, inputs)
        (expected,) = reference(name, inputs).values()
        np.testing.assert_allclose(result, expected, atol=1e-5)
