"""Real models compiled for ARM and run under qemu: their outputs are ONNX Runtime's on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_emulated import run, tools
from zoo import MODELS, example_inputs, model_path, resized

from tcomp.api import InputShapes, load_model, optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.relay.types import numpy_dtype
from tcomp.target.parse import parse_target
from tcomp.verification import OnnxReference

TOLERANCE = 1e-4
"""Largest error allowed, as a share of the output's largest value."""


SMALLER = {
    "resnet18": {"image": (1, 3, 112, 112)},
    "minilm": {"input_ids": (1, 32), "attention_mask": (1, 32)},
    "ocr_rec": {"x": (1, 3, 48, 160)},
}
"""Inputs of models that take long under qemu; with the zoo all have those that they were made for."""
ON_BOTH = ("mobilenetv2_100", "resnet18", "mtcnn_onet")
ON_64_BITS = ("ocr_rec", "minilm")
"""Models of which 32-bit code, and larger ones, are left to the zoo."""
LARGE = ("ocr_det", "resnet50")
CASES = [
    *((name, target) for target in ("cortex-a76", "armv7-linux") for name in ON_BOTH),
    *((name, "cortex-a76") for name in ON_64_BITS),
    ("mtcnn_onet", "neoverse-v1"),
]
WHOLE = [
    *((name, "neoverse-v1") for name in ("mobilenetv2_100", "resnet18", "minilm")),
    *((name, target) for target in ("cortex-a76", "armv7-linux") for name in (*SMALLER, *LARGE)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target_name"), CASES)
def test_equals_onnxruntime(name: str, target_name: str, tmp_path: Path) -> None:
    shapes = SMALLER.get(name, MODELS[name].input_shapes)
    path = resized(name, *shapes.values(), tmp_path) if name == "resnet18" else model_path(name)
    assert_equals_onnxruntime(name, path, shapes, target_name, tmp_path)


@pytest.mark.zoo
@pytest.mark.parametrize(("name", "target_name"), WHOLE)
def test_whole_inputs_equal_onnxruntime(name: str, target_name: str, tmp_path: Path) -> None:
    assert_equals_onnxruntime(name, model_path(name), MODELS[name].input_shapes, target_name, tmp_path)


def assert_equals_onnxruntime(
    name: str, path: Path, shapes: InputShapes, target_name: str, folder: Path
) -> None:
    target = parse_target(target_name)
    tools(target)
    graph = load_model(path, shapes)
    inputs = example_inputs(name, graph)
    library = folder / "model.so"
    compile_graph(optimize(graph, target), target, library)
    result = run(library, target, list(inputs.values()), folder, seconds=900)
    assert (result.returncode, result.stderr) == (0, b"")
    begin = 0
    for reference, value in zip(OnnxReference(path).run(inputs), graph.outputs, strict=True):
        dtype = np.dtype(numpy_dtype(value.dtype))
        found = np.frombuffer(result.stdout, dtype, reference.size, begin).reshape(reference.shape)
        begin += found.nbytes
        scale = np.abs(reference).max()
        assert scale > 0
        assert np.abs(found.astype(np.float64) - reference).max() <= TOLERANCE * scale
    assert begin == len(result.stdout)
