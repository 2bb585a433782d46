"""Masks that hide what lies behind a diagonal become attention's limit, others stay masks."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tcomp import api
from tcomp.relay.attributes import graph as body_of
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Node, Value
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import anchors_of
from tcomp.transform.rules.attention import HIDDEN, causal_limit

ROWS, KEYS, SIZE = 6, 9, 4
LOWEST = float(np.finfo(np.float32).min)


def hiding(causal: int, low: float, rows: int = ROWS, keys: int = KEYS) -> Array:
    return np.where(np.tri(rows, keys, causal - 1) > 0, 0, low).astype(np.float32)


class Scores:
    """A graph up to the scores of its attention, and from their softmax on."""

    def __init__(self, batch: int = 1) -> None:
        self.g = GraphBuilder()
        query, key, self.value = (
            self.g.input(name, (batch, 2, rows, SIZE))
            for name, rows in (("q", ROWS), ("k", KEYS), ("v", KEYS))
        )
        product = self.g.op("matmul", query, key, transpose_b=True)
        self.scores = self.g.op("mul", product, self.g.constant(np.float32(0.5)))

    def graph(self, masked: Value) -> Graph:
        return self.g.build(self.g.op("matmul", self.g.op("softmax", masked, axis=3), self.value))

    def added(self, *masks: Array) -> Graph:
        scores = self.scores
        for mask in masks:
            scores = self.g.op("add", scores, self.g.constant(mask))
        return self.graph(scores)


def anchor_of(optimized: Graph) -> Node:
    """The attention of an optimized graph."""
    bodies = [body_of(n.attrs, "body") for n in optimized.nodes if n.op == "fused"]
    (anchor,) = (a for body in bodies for a in anchors_of(body) if a.op == "attention")
    return anchor


def attention_of(graph: Graph) -> Node:
    """The attention of `graph`, which computes the same when it is optimized."""
    optimized = api.optimize(graph, TARGETS["x86-64-v3"])
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.static_shape).astype(np.float32) for v in graph.inputs]
    (expected,), (found,) = evaluate(graph, arrays), evaluate(optimized, arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    return anchor_of(optimized)


@pytest.mark.parametrize("low", [-inf, LOWEST, -1e9, HIDDEN])
@pytest.mark.parametrize("causal", [1, 4])
def test_added_masks(low: float, causal: int) -> None:
    anchor = attention_of(Scores().added(hiding(causal, low)[np.newaxis]))
    assert (anchor.attrs["causal"], len(anchor.inputs)) == (causal, 3)


@pytest.mark.parametrize("low", [-inf, LOWEST])
@pytest.mark.parametrize("hides", [False, True])
def test_choices(low: float, hides: bool) -> None:
    s = Scores()
    shown = s.g.constant((hiding(2, -1) < 0) if hides else (hiding(2, -1) == 0))
    number = s.g.constant(np.float32(low))
    operands = (number, s.scores) if hides else (s.scores, number)
    anchor = attention_of(s.graph(s.g.op("where", shown, *operands)))
    assert (anchor.attrs["causal"], len(anchor.inputs)) == (2, 3)


@pytest.mark.parametrize("first", ["causal", "mask", "choice"])
def test_beside_a_mask_that_is_an_input(first: str) -> None:
    s = Scores()
    padding, causal = s.g.input("mask", (1, 1, 1, KEYS)), s.g.constant(hiding(3, LOWEST))
    if first == "choice":
        shown, low = s.g.constant(hiding(3, -1) == 0), s.g.constant(np.float32(LOWEST))
        masked = s.g.op("add", s.g.op("where", shown, s.scores, low), padding)
    else:
        masks = (causal, padding) if first == "causal" else (padding, causal)
        masked = s.g.op("add", s.g.op("add", s.scores, masks[0]), masks[1])
    anchor = attention_of(s.graph(masked))
    assert anchor.attrs["causal"] == 3
    assert anchor.inputs[3].shape == (1, 1, 1, KEYS)


def test_what_a_mask_adds_below_the_diagonal_stays() -> None:
    """Biases by distance, one slope a head; and a window of keys."""
    distance = (np.arange(ROWS)[:, np.newaxis] + 3 - np.arange(KEYS)).astype(np.float32)
    biases = np.stack([hiding(4, -inf) - slope * np.abs(distance) for slope in (0.25, 0.5)])
    window = np.where(distance > 2, np.float32(-inf), hiding(4, -inf))
    for mask in (biases[np.newaxis].astype(np.float32), window):
        anchor = attention_of(Scores().added(mask))
        assert (anchor.attrs["causal"], len(anchor.inputs)) == (4, 4)


def without_first_row(low: float) -> Array:
    mask = hiding(1, low)
    mask[0] = low
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        hiding(1, -100.0),  # Weights of hidden keys are no zeros.
        without_first_row(LOWEST),  # A row that sees no key weighs all alike.
        hiding(9, -inf) - 1,  # Nothing is hidden.
        hiding(1, -inf, 1, KEYS),  # The same for all rows.
    ],
    ids=["high", "blind row", "nothing", "one row"],
)
def test_other_masks_are_numbers(mask: Array) -> None:
    anchor = attention_of(Scores().added(mask))
    assert (anchor.attrs["causal"], len(anchor.inputs)) == (0, 4)


def test_limits_of_masks() -> None:
    assert causal_limit(hiding(1, -inf), ROWS, KEYS) == 1
    assert causal_limit(hiding(1, -inf)[np.newaxis, np.newaxis], ROWS, KEYS) == 1
    assert causal_limit(np.where(hiding(1, 1) > 0, np.nan, 0), ROWS, KEYS) is None
    both = np.stack([hiding(1, -inf), hiding(5, -inf)])
    assert causal_limit(both, ROWS, KEYS) == 5


def test_masks_of_exporters(tmp_path: Path) -> None:
    """A triangle of ones, made by operators, chooses between scores and the lowest number."""
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in (("w", (8, 24)), ("low", ()))}
    weights |= {"low": np.float32(LOWEST), "scale": np.float32(2), "shape": np.array([1, 7, 2, 4])}
    weights |= {"square": np.array([7, 7]), "merged": np.array([1, 7, 8])}
    one = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["rows"]),
        helper.make_node("Split", ["rows"], ["q0", "k0", "v0"], axis=2, num_outputs=3),
        *(helper.make_node("Reshape", [f"{n}0", "shape"], [f"{n}1"]) for n in "qkv"),
        *(helper.make_node("Transpose", [f"{n}1"], [n], perm=[0, 2, 1, 3]) for n in "qv"),
        helper.make_node("Transpose", ["k1"], ["k"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["q", "k"], ["products"]),
        helper.make_node("Div", ["products", "scale"], ["scores"]),
        helper.make_node("ConstantOfShape", ["square"], ["ones"], value=one),
        helper.make_node("Trilu", ["ones"], ["triangle"], upper=0),
        helper.make_node("Cast", ["triangle"], ["shown"], to=TensorProto.BOOL),
        helper.make_node("Where", ["shown", "scores", "low"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["heads"]),
        helper.make_node("Transpose", ["heads"], ["merging"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["merging", "merged"], ["y"]),
    ]
    (x, y) = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 7, 8]) for n in "xy")
    constants = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "decoder", [x], [y], constants)
    path = tmp_path / "decoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    anchor = anchor_of(api.optimize(api.load_model(path), TARGETS["x86-64-v3"]))
    assert (anchor.attrs["causal"], len(anchor.inputs)) == (1, 3)
