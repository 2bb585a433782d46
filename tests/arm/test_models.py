"""Real models compiled for ARM and run under qemu: their outputs are ONNX Runtime's on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_emulated import run, tools
from zoo import MODELS, example_inputs, model_path

from tcomp.api import load_model, optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.relay.types import numpy_dtype
from tcomp.target.parse import parse_target
from tcomp.verification import OnnxReference

TOLERANCE = 1e-4
"""Largest error allowed, as a share of the output's largest value."""


ON_BOTH = ("mobilenetv2_100", "resnet18", "mtcnn_onet")
ON_64_BITS = ("ocr_rec", "minilm")
"""Models that take long under qemu; on 32 bits, and larger ones, with the zoo."""
LARGE = ("ocr_det", "resnet50")
ZOO = [pytest.mark.zoo]
CASES = [
    *((name, target) for target in ("cortex-a76", "armv7-linux") for name in ON_BOTH),
    *((name, "cortex-a76") for name in ON_64_BITS),
    ("mtcnn_onet", "neoverse-v1"),
    *(pytest.param(name, "neoverse-v1", marks=ZOO) for name in ("mobilenetv2_100", "resnet18", "minilm")),
    *(pytest.param(name, "armv7-linux", marks=ZOO) for name in ON_64_BITS),
    *(pytest.param(name, target, marks=ZOO) for target in ("cortex-a76", "armv7-linux") for name in LARGE),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target_name"), CASES)
def test_equals_onnxruntime(name: str, target_name: str, tmp_path: Path) -> None:
    target, path = parse_target(target_name), model_path(name)
    tools(target)
    graph = load_model(path, MODELS[name].input_shapes)
    inputs = example_inputs(name, graph)
    library = tmp_path / "model.so"
    compile_graph(optimize(graph, target), target, library)
    result = run(library, target, list(inputs.values()), tmp_path, seconds=900)
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
