"""Names, folding and symbolic shapes of imported graphs."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tcomp.frontend.onnx import import_onnx
from tcomp.relay.evaluate import evaluate
from tcomp.relay.verify import verify


def build(nodes, shape, outputs, constants=None):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


MERGE_HEADS = [
    helper.make_node("Shape", ["x"], ["shape"]),
    helper.make_node("Gather", ["shape", "zero"], ["batch"]),
    helper.make_node("Gather", ["shape", "one"], ["length"]),
    helper.make_node("Mul", ["batch", "length"], ["rows"]),
    helper.make_node("Unsqueeze", ["rows", "axis"], ["rows_1"]),
    helper.make_node("Concat", ["rows_1", "minus"], ["wanted"], axis=0),
    helper.make_node("Reshape", ["x", "wanted"], ["y"], name="merge"),
]
NUMBERS = {"zero": np.int64(0), "one": np.int64(1), "axis": np.array([0]), "minus": np.array([-1])}


def test_shape_arithmetic_disappears_when_static() -> None:
    graph = import_onnx(build(MERGE_HEADS, [2, 3, 4, 5], ["y"], NUMBERS))
    assert [(n.op, n.name, n.attrs["shape"]) for n in graph.nodes] == [("reshape", "merge", (6, 20))]


def test_shape_arithmetic_stays_symbolic() -> None:
    graph = import_onnx(build(MERGE_HEADS, ["batch", "length", 4, 5], ["y"], NUMBERS))
    verify(graph)
    (node,) = graph.nodes
    assert [str(d) for d in node.output.shape] == ["batch*length", "20"]
    x = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    np.testing.assert_array_equal(evaluate(graph, [x])[0], x.reshape(6, 20))


def test_names_are_kept() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Gemm", ["a", "w", "b"], ["y"], alpha=2.0),
    ]
    weights = {"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}
    graph = import_onnx(build(nodes, [1, 3], ["y"], weights))
    assert [(n.op, n.name) for n in graph.nodes] == [
        ("relu", "first"),
        ("matmul", "y"),
        ("mul", "y"),
        ("add", "y"),
    ]
    assert [n.output.name for n in graph.nodes] == ["a", "", "", "y"]
    assert [c.name for c in graph.constants if c.type.rank] == ["w", "b"]


def test_every_output_has_its_own_name() -> None:
    """An input or another output passed through by Identity is still found under its name."""
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["y"], ["same"]),
        helper.make_node("Identity", ["x"], ["input"]),
        helper.make_node("Constant", [], ["constant"], value_float=3.0),
    ]
    names = ["y", "same", "input", "constant"]
    graph = import_onnx(build(nodes, [2], names))
    verify(graph)
    assert [v.name for v in graph.outputs] == names
    x = np.array([-1, 1], np.float32)
    y, same, given, constant = evaluate(graph, [x])
    np.testing.assert_array_equal(y, [0, 1])
    np.testing.assert_array_equal(same, y)
    np.testing.assert_array_equal(given, x)
    assert constant == 3


def test_inputs_can_be_fixed() -> None:
    proto = build([helper.make_node("Neg", ["x"], ["y"])], [2], ["y"])
    graph = import_onnx(proto, constants={"x": np.array([1, 2], np.float32)})
    assert graph.inputs == ()
    np.testing.assert_array_equal(evaluate(graph, [])[0], [-1, -2])
