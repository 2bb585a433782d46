"""The pattern language and the rewrite engine."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tcomp.errors import GraphError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.pattern import Pattern, constant, either, is_uniform, matches, maybe, op, operand
from tcomp.relay.rewrite import GraphEditor, Match, Rule, rewrite
from tcomp.relay.verify import verify


def graph_with(*outputs: Value, builder: GraphBuilder) -> Graph:
    return builder.build(*outputs)


def found(pattern: Pattern, graph: Graph) -> list[dict[str, Value]]:
    editor = GraphEditor(graph)
    for node in graph.nodes:
        editor.copy(node)
    return [dict(b) for b in matches(pattern, graph.outputs[0], editor, {})]


def test_commutative_operands_match_in_either_order():
    b = GraphBuilder()
    x = b.input("x", (4,))
    graph = b.build(b.op("add", b.constant([1.0], "float32"), x))
    (bindings,) = found(op("add", operand("x"), constant("c")), graph)
    assert bindings["x"] is x


def test_operands_of_sub_keep_their_order():
    b = GraphBuilder()
    graph = b.build(b.op("sub", b.constant([1.0], "float32"), b.input("x", (4,))))
    assert not found(op("sub", operand("x"), constant("c")), graph)


def test_the_same_name_must_meet_the_same_value():
    b = GraphBuilder()
    x, y = b.input("x", (4,)), b.input("y", (4,))
    silu = op("mul", operand("x"), op("sigmoid", operand("x")))
    assert len(found(silu, b.build(b.op("mul", b.op("sigmoid", x), x)))) == 1
    assert not found(silu, b.build(b.op("mul", b.op("sigmoid", x), y)))


@pytest.mark.parametrize(
    ("data", "fits"), [([0.5], True), ([0.5, 0.5], True), ([0.5, 0.4], False), ([], False)]
)
def test_constants_match_by_the_value_of_every_element(data: list[float], fits: bool):
    b = GraphBuilder()
    c = b.constant(data, "float32")
    graph = b.build(b.op("mul", b.input("x", (len(data),)), c))
    assert bool(found(op("mul", operand(), constant(value=0.5)), graph)) is fits


def test_constants_match_by_predicate():
    b = GraphBuilder()
    graph = b.build(b.op("mul", b.input("x", (4,)), b.constant(3, "float32")))
    assert found(op("mul", operand(), constant(where=lambda d: d.ndim == 0)), graph)
    assert not found(op("mul", operand(), constant(where=lambda d: d.ndim == 1)), graph)


def test_attributes_match_by_value_and_by_predicate():
    b = GraphBuilder()
    graph = b.build(b.op("cast", b.input("x", (4,)), dtype="int32"))
    assert found(op("cast", operand(), dtype="int32"), graph)
    assert not found(op("cast", operand(), dtype="int64"), graph)
    assert found(op("cast", operand(), dtype=lambda d: str(d).startswith("int")), graph)


def test_number_of_uses_counts_graph_outputs():
    b = GraphBuilder()
    x = b.op("exp", b.input("x", (4,)))
    pattern = op("neg", op("exp", operand(), uses=1))
    assert found(pattern, b.build(b.op("neg", x)))
    assert not found(pattern, b.build(b.op("neg", x), x))


def test_optional_nodes_and_alternatives():
    b = GraphBuilder()
    x = b.input("x", (4,))
    pattern = op(("exp", "log"), maybe("cast", operand("x", where=lambda v: v is x)))
    assert found(pattern, b.build(b.op("exp", x)))
    assert found(pattern, b.build(b.op("log", b.op("cast", x, dtype="float64"))))
    assert not found(pattern, b.build(b.op("abs", x)))
    assert len(found(either(op("abs", operand()), op("abs", operand("y"))), b.build(b.op("abs", x)))) == 2


def _double_negation(match: Match) -> Value:
    return match["x"]


DOUBLE_NEGATION = Rule("double-negation", op("neg", op("neg", operand("x"))), _double_negation)
MERGE_ADDS = Rule(
    "merge-adds",
    op("add", op("add", operand("x"), constant("a")), constant("b")),
    lambda m: m.op("add", m["x"], m.constant(m.data("a") + m.data("b"))),
)


def test_long_chains_collapse_without_recursion():
    b = GraphBuilder()
    x = value = b.input("x", (2,))
    for _ in range(5000):
        value = b.op("add", b.op("neg", b.op("neg", value)), b.constant(1, "float32"))
    fired: Counter[str] = Counter()
    graph = rewrite(b.build(value), [DOUBLE_NEGATION, MERGE_ADDS], fired)
    assert len(graph.nodes) == 1
    assert fired == {"double-negation": 5000, "merge-adds": 4999}
    np.testing.assert_array_equal(evaluate(graph, [np.zeros(2, "float32")])[0], [5000, 5000])
    assert graph.inputs == (x,)


def test_a_graph_that_no_rule_fits_is_returned_as_it_is():
    b = GraphBuilder()
    graph = b.build(b.op("neg", b.input("x", (2,))))
    assert rewrite(graph, [DOUBLE_NEGATION]) is graph


def test_outputs_keep_their_names_even_when_they_become_inputs():
    b = GraphBuilder()
    x = b.input("x", (2,))
    inner = b.node("neg", x)
    y = Value(inner.output.type, "y")
    graph = Graph((x,), (inner, type(inner)("neg", (inner.output,), {}, (y,), "")), (y, x, y))
    result = rewrite(graph, [DOUBLE_NEGATION])
    verify(result)
    assert [v.name for v in result.outputs] == ["y", "x", "y"]
    assert len(set(result.outputs)) == 3
    for output in evaluate(result, [np.arange(2, dtype="float32")]):
        np.testing.assert_array_equal(output, [0, 1])


def test_new_nodes_are_named_after_the_root():
    b = GraphBuilder()
    x = b.op("add", b.input("x", (2,)), b.constant(1, "float32"), name="first")
    graph = b.build(b.op("add", x, b.constant(1, "float32"), name="second"))
    assert [n.name for n in rewrite(graph, [MERGE_ADDS]).nodes] == ["second"]


def test_a_replacement_of_another_type_is_an_error():
    b = GraphBuilder()
    graph = b.build(b.op("neg", b.input("x", (2,))))
    rule = Rule("wrong", op("neg", operand("x")), lambda m: m.op("cast", m["x"], dtype="int32"))
    with pytest.raises(GraphError, match="rule `wrong` replaces f32"):
        rewrite(graph, [rule])


def test_rules_that_undo_each_other_are_an_error():
    b = GraphBuilder()
    graph = b.build(b.op("neg", b.input("x", (2,))))
    rule = Rule("again", op("neg", operand("x")), lambda m: m.op("neg", m["x"]))
    with pytest.raises(GraphError, match="does not end"):
        rewrite(graph, [rule])


def test_a_rule_sees_values_read_once_after_other_rules_freed_them():
    b = GraphBuilder()
    e = b.op("exp", b.input("x", (2,)))
    graph = b.build(b.op("log", e), b.op("mul", b.op("neg", b.op("neg", e)), b.constant(0, "float32")))
    rules = [
        Rule("zero", op("mul", operand("x"), constant(value=0)), lambda m: m.constant(np.zeros(2))),
        Rule("log-exp", op("log", op("exp", operand("x"), uses=1)), lambda m: m["x"]),
    ]
    assert not [n for n in rewrite(graph, rules).nodes if n.op in ("log", "exp")]


@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_infinities_are_uniform_among_themselves_alone(infinity: float):
    assert is_uniform(np.full((2, 2), infinity, np.float32), infinity)
    assert not is_uniform(np.array([infinity, 0, 0], np.float32), infinity)
