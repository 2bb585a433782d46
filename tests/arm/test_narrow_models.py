"""Models in few bits on ARM, those that ONNX Runtime quantizes among them, beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from test_emulated import run, tools

from tcomp.accuracy import relative_error
from tcomp.api import import_onnx, optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.relay.types import Array
from tcomp.target.parse import parse_target
from tcomp.tensor.kernel import Kernel
from tcomp.transform.lower_precision import is_lowered, product_kernels

MODELS = Path(__file__).parents[2] / "models"
SHAPE = (1, 3, 224, 224)


class Random(CalibrationDataReader):
    """Two random images."""

    def __init__(self, name: str) -> None:
        images = (np.random.default_rng(i).standard_normal(SHAPE).astype(np.float32) for i in range(2))
        self._images: Iterator[dict[str, Array]] = ({name: image} for image in images)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._images, None)


def session(path: Path) -> onnxruntime.InferenceSession:
    """Without optimizations: those multiply int8 with saturation on CPUs without VNNI."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options)


def model_file(name: str) -> Path:
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"no {path}: python scripts/models.py {name}")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("cortex-a76", 1e-2), ("neoverse-v1", 2e-2)])
def test_fast_is_near_onnxruntime(name: str, most: float, tmp_path: Path) -> None:
    source, target = model_file("mobilenetv2_100"), parse_target(name)
    tools(target)
    reference = session(source)
    (entry,) = reference.get_inputs()
    image = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    (expected,) = reference.run(None, {entry.name: image})
    graph = optimize(import_onnx(str(source), {entry.name: SHAPE}), target, precision="fast")
    assert all(is_lowered(kernel) for kernel in product_kernels(graph))
    library = tmp_path / "model.so"
    compile_graph(graph, target, library)
    result = run(library, target, [image], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    found = np.frombuffer(result.stdout, np.float32).reshape(expected.shape)
    error = relative_error(found, expected)
    print(f"{name}: {error:.2%} of the outputs' scale")
    assert 0 < error < most


@pytest.mark.slow
@pytest.mark.parametrize(("model", "most_steps"), [("resnet18", 1), ("mobilenetv2_100", 3)])
def test_int8_equals_onnxruntime(model: str, most_steps: int, tmp_path: Path) -> None:
    """Outputs are steps of the last quantization; where a sum lies between two steps, either is right, and
    later layers add to the difference."""
    source, quantized = model_file(model), tmp_path / "quantized.onnx"
    target = parse_target("cortex-a76")
    tools(target)
    (entry,) = session(source).get_inputs()
    quantize_static(
        source,
        quantized,
        Random(entry.name),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    image = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    (expected,) = session(quantized).run(None, {entry.name: image})
    graph = optimize(import_onnx(str(quantized), {entry.name: SHAPE}), target)
    anchors = [k.anchor for k in (Kernel.of(n) for n in graph.nodes if n.op == "fused") if k.anchor]
    assert sum(a.inputs[0].dtype == "int8" for a in anchors) >= 20
    library = tmp_path / "model.so"
    compile_graph(graph, target, library)
    result = run(library, target, [image], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    found = np.frombuffer(result.stdout, np.float32).reshape(expected.shape)
    step = np.diff(np.unique(expected)).min()
    assert np.abs(found - expected).max() <= (most_steps + 0.01) * step
    assert found.argmax() == expected.argmax()
