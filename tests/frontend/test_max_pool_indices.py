"""MaxPool's second output, compiled, against ONNX Runtime's; windows of -inf; and back with MaxUnpool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import tcomp
from tcomp.errors import UnsupportedError
from tcomp.frontend.onnx import import_onnx
from tcomp.relay.evaluate import evaluate

PADDED = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def pooling(shape: list[int | str], unpool: bool = False, **attrs: object) -> onnx.ModelProto:
    nodes = [helper.make_node("MaxPool", ["x"], ["y", "i"], "pool", **attrs)]
    outputs = [("y", TensorProto.FLOAT), ("i", TensorProto.INT64)]
    if unpool:
        nodes.append(helper.make_node("MaxUnpool", ["y", "i"], ["z"], "unpool", **attrs))
        outputs.append(("z", TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "pooling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)


@pytest.mark.parametrize(
    "attrs",
    [PADDED, {"kernel_shape": [2, 3], "dilations": [2, 1], "storage_order": 1}, {"kernel_shape": [2, 2]}],
)
def test_equals_onnxruntime(tmp_path: Path, attrs: dict[str, object]) -> None:
    model = pooling([2, 3, 6, 8], **attrs)
    path = tmp_path / "pooling.onnx"
    onnx.save(model, path)
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 8), np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tcomp.compile(path, tmp_path / "pooling.so")
    for found, expected in zip(
        tcomp.load(tmp_path / "pooling.so")(x), session.run(None, {"x": x}), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_windows_of_minus_infinity_point_inside() -> None:
    x = np.full((1, 2, 5, 5), -np.inf, np.float32)
    x[0, 1, 4, 4] = 1
    values, indices = evaluate(import_onnx(pooling([1, 2, 5, 5], **PADDED)), [x])
    assert ((indices >= 0) & (indices < x.size)).all()
    np.testing.assert_array_equal(x.reshape(-1)[indices], values)
    assert indices[0, 1, 2, 2] == x.size - 1


def test_unpooling_puts_maxima_back() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 6), np.float32)
    graph = import_onnx(pooling([1, 2, 6, 6], unpool=True, kernel_shape=[2, 2], strides=[2, 2]))
    values, _, restored = evaluate(graph, [x])
    assert restored.shape == x.shape
    np.testing.assert_array_equal(np.sort(restored[restored != 0]), np.sort(values.reshape(-1)))
    np.testing.assert_array_equal(restored[restored != 0], x[restored != 0])


def test_symbolic_shapes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"`pool`.*--input-shape"):
        import_onnx(pooling(["batch", 2, 6, 6], kernel_shape=[2, 2]))
