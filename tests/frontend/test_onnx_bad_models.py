"""Files and models that cannot be imported: one line that says what, where and the remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tcomp.errors import ModelError, TcompError, UnsupportedError
from tcomp.frontend.onnx import import_onnx


def model(nodes, inputs=None, initializers=(), opset=17, outputs=("y",)) -> onnx.ModelProto:
    inputs = inputs or {"x": ["batch", 3]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        initializer=list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def relu() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], name="r")])


def message(error: pytest.ExceptionInfo[TcompError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read") as error:
        import_onnx(tmp_path / "none.onnx")
    assert "none.onnx" in message(error)


def test_sparse_weights(tmp_path: Path) -> None:
    found = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [4]})
    places = helper.make_tensor("places", TensorProto.INT64, [1], [2])
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    found.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))
    path = tmp_path / "sparse.onnx"
    path.write_bytes(found.SerializeToString())
    with pytest.raises(UnsupportedError, match="`w` cannot be read; store") as error:
        import_onnx(path)
    message(error)


@pytest.mark.parametrize("size", [0, 1, 7, 64, 1000])
def test_random_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "random.onnx"
    path.write_bytes(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes())
    with pytest.raises(ModelError, match=r"random\.onnx") as error:
        import_onnx(path)
    message(error)


def one_line_error(path: Path) -> bool:
    """Whether importing `path` is refused; other exceptions than tcomp's pass through."""
    try:
        import_onnx(path)
    except TcompError as error:
        return "\n" not in str(error)
    return False


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    """A cut file is refused, but where the cut falls behind everything that is needed."""
    data = relu().SerializeToString()
    path = tmp_path / "cut.onnx"
    refused = 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refused += one_line_error(path)
    assert refused == len(data)


def test_all_unsupported_operators_at_once() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="first"),
        helper.make_node("NonZero", ["x"], ["b"], name="second"),
        helper.make_node("Det", ["x"], ["y"], name="third"),
        helper.make_node("Fancy", ["x"], ["z"], name="fourth", domain="com.example"),
    ]
    with pytest.raises(UnsupportedError) as error:
        import_onnx(model(nodes))
    text = message(error)
    assert "NonZero (2 nodes: `first`, `second`)" in text
    assert "Det (1 node: `third`)" in text
    assert "com.example::Fancy (1 node: `fourth`)" in text


def test_unsupported_forms_are_collected() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["n"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "n"], ["a"], name="p"),
        helper.make_node("Tile", ["x", "n"], ["y"], name="e"),
    ]
    with pytest.raises(UnsupportedError) as error:
        import_onnx(model(nodes, {"x": [3, 3]}))
    assert "`p`" in message(error)
    assert "`e`" in message(error)


def test_shape_that_depends_on_data() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["shape"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape"),
    ]
    with pytest.raises(UnsupportedError, match=r"`reshape`.*--input-shape"):
        import_onnx(model(nodes, {"x": [2]}))


@pytest.mark.parametrize("shape", ["2,3", (2.0, 3), "23"])
def test_input_shapes_that_are_no_numbers(shape: object) -> None:
    with pytest.raises(ModelError, match="must be whole numbers") as error:
        import_onnx(relu(), {"x": shape})  # type: ignore[dict-item]
    assert "`x`" in message(error)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"x": [1, 4]}, r"\[1,4\].*f32\[batch,3\].*axis 1 is 3, not 4"),
        ({"x": [1, 3, 1]}, "2 dimensions, not 3"),
        ({"x": [0, 3]}, "sizes start at 1"),
        ({"z": [1, 3]}, "`z`.*inputs: `x`"),
    ],
)
def test_contradicting_input_shapes(shapes: dict[str, list[int]], expected: str) -> None:
    with pytest.raises(ModelError, match=expected) as error:
        import_onnx(relu(), input_shapes=shapes)
    message(error)


def test_one_symbol_two_sizes() -> None:
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": ["batch", 3], "w": ["batch", 3]})
    with pytest.raises(ModelError, match="`batch` is 2, but another input makes it 1"):
        import_onnx(proto, input_shapes={"x": [1, 3], "w": [2, 3]})
    graph = import_onnx(proto, input_shapes={"x": [5, 3]})
    assert [v.shape for v in graph.inputs] == [(5, 3), (5, 3)]


def test_dimension_names_are_made_valid() -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["a.b", None, "1st", "a_b"]})
    (value,) = import_onnx(proto).inputs
    assert [str(d) for d in value.shape] == ["a_b", "x_1", "dim_1st", "a_b_2"]


def test_shape_mismatch_names_the_node() -> None:
    with pytest.raises(ModelError, match="Add node `sum`") as error:
        import_onnx(model([helper.make_node("Add", ["x", "w"], ["y"], name="sum")], {"x": [2], "w": [3]}))
    message(error)


@pytest.mark.parametrize("opset", [6, 999])
def test_opset_out_of_range(opset: int) -> None:
    with pytest.raises(UnsupportedError, match=f"opset {opset}"):
        import_onnx(model([helper.make_node("Relu", ["x"], ["y"])], opset=opset))


def test_unsupported_element_type() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT8E5M2FNUZ, [2], [1, 2])
    with pytest.raises(UnsupportedError, match="initializer `w` has element type FLOAT8E5M2FNUZ"):
        import_onnx(model([helper.make_node("Relu", ["x"], ["y"])], initializers=[weight]))


def test_dynamic_if_is_unsupported() -> None:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x"], ["b"])], op, [], [out])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["c"], ["y"], name="if", then_branch=branch("Relu"), else_branch=branch("Neg")
        ),
    ]
    with pytest.raises(UnsupportedError, match=r"If \(1 node: `if`\): its condition"):
        import_onnx(model(nodes))
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(False)))
    graph = import_onnx(model([constant, nodes[2]]))
    assert [node.op for node in graph.nodes] == ["neg"]


def external(path: Path, location: str, data: bytes | None) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[weight])
    path.write_bytes(proto.SerializeToString())
    if data is not None:
        (path.parent / location).write_bytes(data)


def test_external_data(tmp_path: Path) -> None:
    data = np.arange(3, dtype=np.float32)
    external(tmp_path / "m.onnx", "w.bin", data.tobytes())
    (constant,) = import_onnx(tmp_path / "m.onnx").constants
    np.testing.assert_array_equal(constant.data, data)


@pytest.mark.parametrize(
    ("location", "data", "expected"),
    [
        ("w.bin", None, r"`w`.*w\.bin"),
        ("w.bin", b"1234", "needs 12 bytes"),
        ("../w.bin", b"x" * 12, "outside the model's folder"),
        ("/etc/passwd", None, "outside the model's folder"),
    ],
)
def test_bad_external_data(tmp_path: Path, location: str, data: bytes | None, expected: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    external(folder / "m.onnx", location, data)
    with pytest.raises(ModelError, match=expected) as error:
        import_onnx(folder / "m.onnx")
    message(error)
