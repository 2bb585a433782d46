"""Real models with precision `fast`: near ONNX Runtime's float32, with nothing taken back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from zoo import MODELS, CompiledModel, example_inputs, model_path, parameters

from tcomp.accuracy import TOLERANCE
from tcomp.api import load_model, optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array
from tcomp.rounding import evaluate_rounded
from tcomp.runtime import load
from tcomp.target.host import host_target
from tcomp.target.parse import parse_target
from tcomp.transform.precision import lowering
from tcomp.verification import OnnxReference

NAMES = ("minilm", "mobilenetv2_100", "resnet50", "vit_small_patch16_224")


needs_fp16 = pytest.mark.skipif(not host_target().has("avx512fp16"), reason="this CPU has no AVX512-FP16")


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=needs_fp16), "bfloat16"])
@pytest.mark.parametrize("name", parameters(NAMES))
def test_is_near_onnxruntime(name: str, dtype: str, compiled: Callable[..., CompiledModel]) -> None:
    """Any CPU computes products of bfloat16, if it is told to."""
    target = json.dumps({"tag": "llvm", "fast_dtype": dtype})
    inputs = example_inputs(name, load_model(model_path(name), MODELS[name].input_shapes))
    expected = OnnxReference(model_path(name)).run(inputs)
    fast, exact = compiled(name, "fast", target), compiled(name)
    assert f"products in {dtype}" in fast.precision
    assert "kept in float32" not in fast.precision
    for result, reference in zip(fast.model(*inputs.values()), expected, strict=True):
        assert result.dtype == reference.dtype
        scale = np.abs(reference).max()
        assert np.abs(result.astype(np.float64) - reference).max() <= TOLERANCE * scale
    # Tables of embeddings stay float32, as do transformed weights of Winograd convolutions.
    assert fast.report.program.weights_bytes < 0.8 * exact.report.program.weights_bytes


@needs_fp16
@pytest.mark.parametrize("name", parameters((*NAMES, "resnet18", "ocr_det", "ocr_rec")))
def test_errors_of_float16_are_estimated(name: str, tmp_path: Path) -> None:
    """What numpy says of CPUs that are not here, of one that is. Nothing is taken back."""
    target = parse_target(json.dumps({"tag": "llvm", "fast_dtype": "float16"}))
    graph = load_model(model_path(name), MODELS[name].input_shapes)
    inputs = list(example_inputs(name, graph).values())
    exact = optimize(graph, target)
    lower = lowering(target, "fast")
    assert lower is not None
    lowered = lower.run(exact)
    compile_graph(lowered, target, tmp_path / "m.so")
    (expected,), (estimate,) = evaluate(exact, inputs), next(evaluate_rounded(lowered, inputs, target))
    with load(tmp_path / "m.so") as model:
        (found,) = model(*inputs)

    def size(x: Array) -> float:
        return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))

    estimated, measured = (size(x - expected) / size(expected) for x in (estimate, found))
    print(f"{name}: estimated {estimated:.2%}, measured {measured:.2%}")
    assert measured / 2 < estimated < 2 * measured
