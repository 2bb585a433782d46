"""Small convolutional networks of 8 bits, as ONNX has them, on an emulated GPU beside ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tcomp import api
from tcomp.codegen.artifact import compile_graph
from tcomp.relay.graph import Graph
from tcomp.runtime import load
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for

SHAPE = (2, 3, 11, 9)
STEP = {"int8": 1 / 24, "uint8": 1 / 24, "float8_e4m3fn": 1 / 8, "float8_e5m2": 1 / 8}
TYPES = {
    "int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e5m2": TensorProto.FLOAT8E5M2,
}  # fmt: skip


class Network:
    """Three convolutions with biases, a residual, QuantizeLinear and DequantizeLinear around them."""

    def __init__(self, dtype: str, zero: int, weights: str) -> None:
        self._rng = np.random.default_rng(0)
        self._dtype, self._weights = dtype, weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._count = 0
        zero_point = helper.make_tensor("zero", TYPES[dtype], (), [zero])
        none = helper.make_tensor("none", TYPES[weights], (128,), [0] * 128)
        self._constants += [zero_point, none, numpy_helper.from_array(np.float32(STEP[dtype]), "step")]

    def model(self) -> onnx.ModelProto:
        x = self._rounded("x")
        x = self._rounded(self._node("Relu", self._conv(x, 3, 128, 3)))
        y = self._rounded(self._node("Relu", self._conv(x, 128, 128, 3)))
        y = self._node("Relu", self._node("Add", self._conv(y, 128, 128, 1), x))
        result = self._node("GlobalAveragePool", self._rounded(y))
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, (2, 128, 1, 1))],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(model)
        return model

    def _node(self, op: str, *inputs: str, **attrs: object) -> str:
        self._count += 1
        self._nodes.append(helper.make_node(op, inputs, [f"v{self._count}"], **attrs))
        return f"v{self._count}"

    def _rounded(self, x: str) -> str:
        return self._node("DequantizeLinear", self._node("QuantizeLinear", x, "step", "zero"), "step", "zero")

    def _conv(self, x: str, channels: int, filters: int, size: int) -> str:
        self._count += 1
        names = [f"{name}{self._count}" for name in ("weight", "scale", "bias")]
        shape = (filters, channels, size, size)
        levels = self._rng.integers(-8, 9, shape)
        scale = self._rng.uniform(0.5, 1.5, filters) / (5 * np.sqrt(channels * size**2))
        bias = self._rng.standard_normal(filters) / 4
        self._constants += [
            helper.make_tensor(names[0], TYPES[self._weights], shape, levels.reshape(-1).tolist()),
            numpy_helper.from_array(scale.astype(np.float32), names[1]),
            numpy_helper.from_array(bias.astype(np.float32), names[2]),
        ]
        weight = self._node("DequantizeLinear", names[0], names[1], "none", axis=0)
        return self._node("Conv", x, weight, names[2], pads=[size // 2] * 4)


def templates(graph: Graph, target: Target) -> list[str]:
    """Of the convolutions."""
    kernels = [Kernel.of(node) for node in graph.nodes if node.op == "fused"]
    convolutions = [k for k in kernels if k.anchor is not None and k.anchor.op == "conv2d"]
    chosen = [(template_for(k, target), k) for k in convolutions]
    return [t.id_of(t.space(k, target).default).partition("@")[0] for t, k in chosen]


@pytest.mark.parametrize(
    ("dtype", "zero", "arch"),
    [
        ("int8", 5, "sm_80"),
        pytest.param("uint8", 100, "sm_90a", marks=pytest.mark.slow),
        pytest.param("float8_e4m3fn", 0, "sm_90a", marks=pytest.mark.slow),
        pytest.param("float8_e4m3fn", 0, "sm_89", marks=pytest.mark.slow),
        pytest.param("float8_e5m2", 0, "sm_89", marks=pytest.mark.slow),
        pytest.param("float8_e4m3fn", 0, "sm_80", marks=pytest.mark.slow),
    ],
)
def test_networks(
    dtype: str, zero: int, arch: str, gpu: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensor cores multiply all of them where they have the type. Means differ by little of a step."""
    monkeypatch.setenv("EMULATED_CAPABILITY", arch[3:5])
    target = TARGETS[f"cuda:{arch}"]
    assert target.gpu is not None
    few = replace(target, gpu=replace(target.gpu, processors=2))
    model = Network(dtype, zero, dtype if "float" in dtype else "int8").model()
    onnx.save(model, tmp_path / "model.onnx")
    graph = api.optimize(api.load_model(tmp_path / "model.onnx"), few)
    multiplied = "float8" not in dtype or arch != "sm_80"
    found = templates(graph, few)
    assert len(found) == 3
    assert all(("mma" in name) is multiplied for name in found)
    compile_graph(graph, few, tmp_path / "model.so")
    data = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    # Its optimizations take Relu before QuantizeLinear away, of float8 too, which has negative numbers.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (expected,) = session.run(None, {"x": data})
    (result,) = load(tmp_path / "model.so")(data)
    assert expected.std() > 0.1
    np.testing.assert_allclose(result, expected, atol=STEP[dtype] / 4)
