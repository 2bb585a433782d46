"""Operators of ONNX Runtime's quantizer, against ONNX Runtime: at most one step apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tcomp.api import import_onnx
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS
from tcomp.transform.lower_quantized import LowerQuantized
from tcomp.transform.pipeline import optimize

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (1, 8, 5, 5)).astype(np.uint8)
ROWS = RNG.integers(0, 256, (3, 24)).astype(np.uint8)


def scale(value: float) -> Array:
    return np.array(value, np.float32)


def zero(value: int) -> Array:
    return np.array(value, np.uint8)


# Weights of seven bits: ONNX Runtime's sums of pairs saturate on CPUs without VNNI.
CASES: dict[str, tuple[str, Array, list[Array], dict[str, int]]] = {
    "add": (
        "QLinearAdd", IMAGE,
        [scale(0.1), zero(120), IMAGE[:, ::-1].copy(), scale(0.07), zero(9), scale(0.15), zero(100)], {},
    ),
    "mul": (
        "QLinearMul", IMAGE,
        [scale(0.1), zero(120), IMAGE[:, ::-1].copy(), scale(0.07), zero(9), scale(2.0), zero(100)], {},
    ),
    "mean": ("QLinearGlobalAveragePool", IMAGE, [scale(0.1), zero(120), scale(0.05), zero(128)], {}),
    "gemm": (
        "QGemm", ROWS,
        [
            scale(0.1), zero(120), RNG.integers(-64, 64, (16, 24)).astype(np.int8),
            RNG.uniform(0.01, 0.02, 16).astype(np.float32), np.zeros(16, np.int8),
            RNG.integers(-9999, 9999, 16).astype(np.int32), scale(0.9), zero(128),
        ],
        {"transB": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_is_within_a_step(name: str, tmp_path: Path) -> None:
    op_type, data, others, attrs = CASES[name]
    names = ["x", *(f"c{i}" for i in range(len(others)))]
    node = helper.make_node(op_type, names, ["y"], domain="com.microsoft", **attrs)
    constants = [numpy_helper.from_array(a, n) for n, a in zip(names[1:], others, strict=True)]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, data.shape)
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "one", [x], [y], constants)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": data})
    imported = import_onnx(str(path))
    in_integers = LowerQuantized(integer_products=True).run(imported)
    for form in (imported, in_integers, optimize(imported, TARGETS["cortex-a76"])):
        (found,) = evaluate(form, [data])
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
        assert expected.std() > 5
