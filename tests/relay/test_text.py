"""Relay text reads back as the same graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp.errors import GraphError, ParseError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.dims import symbol
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.op import OPS
from tcomp.relay.parser import load_graph, parse_graph
from tcomp.relay.printer import print_graph, save_graph, weights_of
from tcomp.relay.types import DTYPES, numpy_dtype
from tcomp.relay.verify import verify

SAMPLES = [(name, i) for name in OPS for i in range(len(OPS[name].samples))]


def round_trip(graph: Graph) -> Graph:
    weights = {n: c.data for n, c in weights_of(graph).items()}
    return parse_graph(print_graph(graph), weights)


def assert_same(first: Graph, second: Graph) -> None:
    """Equal up to the identity of values."""
    same: dict[Value, Value] = dict(zip(first.inputs, second.inputs, strict=True))

    def check(a: Value, b: Value) -> None:
        assert a.type == b.type
        if isinstance(a, Constant):
            assert isinstance(b, Constant)
            np.testing.assert_array_equal(a.data, b.data)
        else:
            assert same[a] is b

    for a, b in zip(first.nodes, second.nodes, strict=True):
        assert (a.op, a.name) == (b.op, b.name)
        for x, y in zip(a.inputs, b.inputs, strict=True):
            check(x, y)
        for key, attr in a.attrs.items():
            if isinstance(attr, Graph):
                assert_same(attr, b.attrs[key])
            else:
                assert repr(attr) == repr(b.attrs[key])
        same.update(zip(a.outputs, b.outputs, strict=True))
    for x, y in zip(first.outputs, second.outputs, strict=True):
        check(x, y)


@pytest.mark.parametrize(("name", "index"), SAMPLES)
def test_every_operator_round_trips(name: str, index: int) -> None:
    sample = OPS[name].samples[index]
    b = GraphBuilder("sample")
    operands: list[Value] = []
    for i, t in enumerate(sample.types):
        constant = i in sample.constant
        array = np.ones(t.static_shape, numpy_dtype(t.dtype))
        operands.append(b.constant(array, name=f"c{i}") if constant else b.input(f"x{i}", t.shape, t.dtype))
    node = b.node(name, *operands, name="the node", **sample.attrs)
    graph = b.build(*node.outputs)
    again = round_trip(graph)
    verify(again)
    assert_same(graph, again)
    assert print_graph(again) == print_graph(graph)


def mlp() -> Graph:
    b = GraphBuilder("mlp")
    x = b.input("x:0", (symbol("batch"), 3))
    w = b.constant(np.arange(12, dtype=np.float32).reshape(3, 4), name="layer/w")
    y = b.op("matmul", x, w, name='say "hi"')
    y = b.op("add", y, b.constant(np.float32("nan")))
    y = b.op("clip", y, min=float("-inf"), max=1e-30)
    return b.build(b.op("reshape", y, shape=(symbol("batch") * 2, 2)), x)


def test_symbols_names_and_odd_floats() -> None:
    graph = mlp()
    assert_same(graph, round_trip(graph))
    text = print_graph(graph)
    assert '%"x:0": f32[batch,3]' in text
    assert '@"layer/w": f32[3,4] #' in text
    assert "nan: f32[]" in text


def test_saved_graph_loads(tmp_path: Path) -> None:
    path = tmp_path / "mlp.relay"
    save_graph(mlp(), path)
    loaded = load_graph(path)
    x = np.ones((2, 3), np.float32)
    for a, b in zip(evaluate(mlp(), [x]), evaluate(loaded, [x]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    graph = mlp()
    (name,) = weights_of(graph)
    with pytest.raises(ParseError, match="differs from the one"):
        parse_graph(print_graph(graph), {name: np.zeros((3, 4), np.float32)})
    with pytest.raises(ParseError, match="not among the stored"):
        parse_graph(print_graph(graph))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: expected `graph`"),
        ("graph g() { return %x }", "1: `%x` is used before"),
        ("graph g(%x: f32[2]) {\n  %y = nope(%x)\n  return %y\n}", "2: there is no operator `nope`"),
        ("graph g(%x: f32[2]) {\n  %y = relu(%x) {a=1}\n  return %y\n}", "2: `relu` has no attribute `a`"),
        ("graph g(%x: f32[2]) {\n  %y = relu(%x) : f32[3]\n  return %y\n}", "the text says f32[3]"),
        ("graph g(%x: f99[2]) { return %x }", "unknown element type `f99`"),
        ("graph g(%x: f32[2]) { return %x } extra", "expected the end of the text"),
        ("graph g(%x: f32[2]) { return ~ }", "cannot read `~ }`"),
        ("graph g(%x: f32[2], %x: f32[2]) { return %x }", "`%x` is defined twice"),
    ],
)
def test_malformed_text_is_located(text: str, message: str) -> None:
    with pytest.raises(ParseError) as error:
        parse_graph(text)
    assert message in str(error.value)


def test_verifier_names_the_node() -> None:
    x = Value(mlp().inputs[0].type, "x")
    stray = Node("relu", (Value(x.type, "ghost"),), {}, (Value(x.type, "y"),), "act")
    with pytest.raises(GraphError, match="`relu` node `act` reads `ghost`"):
        verify(Graph((x,), (stray,), stray.outputs))
    wrong = Node("relu", (x,), {}, (Value(x.type.with_dtype("int8"), "y"),), "act")
    with pytest.raises(GraphError, match="output types i8"):
        verify(Graph((x,), (wrong,), wrong.outputs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_constants_of_every_type_are_read_back(dtype: str, tmp_path: Path) -> None:
    b = GraphBuilder("constants")
    small, large = (np.arange(-1, n).astype(numpy_dtype(dtype)) for n in (2, 100))
    x, y = b.constant(small), b.constant(large, name="large")
    graph = b.build(b.op("concat", x, y, axis=0))
    save_graph(graph, tmp_path / "graph.relay")
    assert_same(graph, load_graph(tmp_path / "graph.relay"))
