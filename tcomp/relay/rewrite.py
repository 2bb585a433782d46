"""Rewrite a graph by named rules until none applies.

A rule is data: a name, a pattern and a function that builds the replacement from the match. `rewrite`
walks the nodes in order, building a new graph, and offers every node - old, or just made by a rule - to
the rules that start with its operator. It repeats the walk until no rule fires. Each walk is linear in
the number of nodes, and nothing recurses over the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tcomp.errors import GraphError
from tcomp.relay.builder import make_node
from tcomp.relay.graph import Attr, Constant, Graph, Node, Value, topological
from tcomp.relay.pattern import Bindings, Pattern, matches, root_operators
from tcomp.relay.types import Array, TensorType, numpy_dtype

MAX_SWEEPS = 100
MAX_FIRINGS_A_NODE = 100


@dataclass(frozen=True)
class Match:
    """A place where a rule's pattern fits, and the means to build the replacement.

    Nodes made here are named after the matched root, and appear in the new graph only if the
    replacement needs them.
    """

    root: Node
    bindings: Bindings
    editor: GraphEditor

    def __getitem__(self, name: str) -> Value:
        return self.bindings[name]

    def __contains__(self, name: str) -> bool:
        return name in self.bindings

    @property
    def type(self) -> TensorType:
        """The type that the replacement must have."""
        return self.root.output.type

    def node(self, name: str) -> Node:
        """The node whose output is bound to `name`."""
        node = self.editor.producer(self.bindings[name])
        if node is None:
            raise GraphError(f"pattern name `{name}` is bound to a value without a producer")
        return node

    def data(self, name: str) -> Array:
        """The data of the constant bound to `name`."""
        value = self.bindings[name]
        if not isinstance(value, Constant):
            raise GraphError(f"pattern name `{name}` is not bound to a constant")
        return value.data

    def use_count(self, name: str) -> int:
        """How often the value bound to `name` is read."""
        return self.editor.use_count(self.bindings[name])

    def op(self, op: str, *inputs: Value, **attrs: Attr) -> Value:
        """Apply an operator; returns its only output."""
        return self.editor.op(op, *inputs, name=self.root.name, **attrs)

    def constant(self, data: npt.ArrayLike, dtype: str | None = None) -> Constant:
        """A constant of the root's element type, or of `dtype`."""
        array = np.asarray(data)
        return Constant.of(array.astype(numpy_dtype(dtype or self.root.output.dtype), copy=False))


Build = Callable[[Match], "Value | None"]


@dataclass(frozen=True)
class Rule:
    """`build` returns the value that replaces the root's output, or None when the rule does not apply."""

    name: str
    pattern: Pattern
    build: Build


class GraphEditor:
    """A new graph under construction from an old one: what each old value became, and who reads it.

    The number of reads counts those of the old graph's nodes, and so may be too high until the next
    walk; rules that ask for a single use are then merely applied one walk later.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._producers: dict[Value, Node] = {}
        self._replaced: dict[Value, Value] = {}
        self._uses: dict[Value, int] = {}
        for value in (*graph.inputs, *graph.constants):
            self._uses[value] = graph.use_count(value)

    def producer(self, value: Value) -> Node | None:
        return self._producers.get(value)

    def use_count(self, value: Value) -> int:
        return self._uses.get(value, 0)

    def current(self, value: Value) -> Value:
        """What the old graph's `value` has become."""
        return self._replaced.get(value, value)

    def op(self, op: str, *inputs: Value, name: str = "", **attrs: Attr) -> Value:
        """Append a node; returns its only output."""
        return self.add(make_node(op, inputs, attrs, name)).output

    def add(self, node: Node) -> Node:
        """Append a node made elsewhere, whose operands are values of the new graph."""
        for value in node.inputs:
            self._uses[value] = self._uses.get(value, 0) + 1
        for value in node.outputs:
            self._producers[value] = node
        return node

    def copy(self, node: Node) -> Node:
        """Append the old graph's `node` with its operands replaced; it keeps its output values.

        Its operands' types must be unchanged, so that the outputs' types still hold.
        """
        inputs = tuple(self._replaced.get(v, v) for v in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        fresh = node if same else replace(node, inputs=inputs)
        for value in fresh.outputs:
            self._producers[value] = fresh
            self.replace(value, value)
        return fresh

    def replace(self, old: Value, new: Value) -> None:
        """Let `new` stand for the old graph's `old` from here on."""
        if old is not new:
            self._replaced[old] = new
        self._uses[new] = self._uses.get(new, 0) + self._graph.use_count(old)

    def finish(self) -> Graph:
        """The new graph: the nodes that its outputs need. Outputs may have lost their names."""
        old = self._graph
        outputs = tuple(self._replaced.get(v, v) for v in old.outputs)
        return Graph(old.inputs, tuple(topological(outputs, self._producers)), outputs, old.name)


def keep_output_names(graph: Graph, names: Sequence[str]) -> Graph:
    """`graph` with its outputs called `names`.

    An output that is also a graph input, a constant or an earlier output gets a `reshape` to its own
    shape, so that it can have a name of its own.
    """
    renamed: dict[Value, Value] = {}
    outputs: list[Value] = []
    extra: list[Node] = []
    for value, name in zip(graph.outputs, names, strict=True):
        if value.name == name and value not in outputs:
            outputs.append(value)
        elif value in graph.producers and value not in outputs and value not in renamed:
            renamed[value] = Value(value.type, name)
            outputs.append(renamed[value])
        else:
            source = renamed.get(value, value)
            extra.append(make_node("reshape", [source], {"shape": value.shape}, output_names=[name]))
            outputs.append(extra[-1].output)
    if not renamed and not extra:
        return graph
    nodes = [_substitute(node, renamed) for node in graph.nodes]
    return Graph(graph.inputs, (*nodes, *extra), tuple(outputs), graph.name)


def _substitute(node: Node, renamed: Mapping[Value, Value]) -> Node:
    inputs = tuple(renamed.get(v, v) for v in node.inputs)
    outputs = tuple(renamed.get(v, v) for v in node.outputs)
    if inputs == node.inputs and outputs == node.outputs:
        return node
    return replace(node, inputs=inputs, outputs=outputs)


def rewrite(graph: Graph, rules: Iterable[Rule], fired: Counter[str] | None = None) -> Graph:
    """`graph` with `rules` applied until none fires; `fired` counts the firings of each rule by name.

    Raises GraphError when a replacement has another type than what it replaces, or when rules undo
    each other without end.
    """
    table = _by_operator(rules)
    counts: Counter[str] = Counter() if fired is None else fired
    names = [v.name for v in graph.outputs]
    for _ in range(MAX_SWEEPS):
        before = counts.total()
        graph = _sweep(graph, table, counts)
        if counts.total() == before:
            return keep_output_names(graph, names)
    raise GraphError(f"rewriting does not end; rules fired: {dict(counts)}")


def _by_operator(rules: Iterable[Rule]) -> Mapping[str, Sequence[Rule]]:
    table: dict[str, list[Rule]] = {}
    for rule in rules:
        for name in dict.fromkeys(root_operators(rule.pattern)):
            table.setdefault(name, []).append(rule)
    return table


def _sweep(graph: Graph, table: Mapping[str, Sequence[Rule]], counts: Counter[str]) -> Graph:
    editor = GraphEditor(graph)
    before = counts.total()
    for node in graph.nodes:
        copied = editor.copy(node)
        if len(node.outputs) != 1 or copied.op not in table:
            continue
        result = _apply_rules(copied, table, editor, counts)
        if result is not copied.output:
            editor.replace(node.output, result)
    return graph if counts.total() == before else editor.finish()


def _apply_rules(
    node: Node, table: Mapping[str, Sequence[Rule]], editor: GraphEditor, counts: Counter[str]
) -> Value:
    """What the output of `node` becomes when rules are applied to it, and to what they make of it."""
    for _ in range(MAX_FIRINGS_A_NODE):
        result = _first_replacement(node, table.get(node.op, ()), editor, counts)
        if result is None:
            return node.output
        producer = editor.producer(result)
        if producer is None or len(producer.outputs) != 1:
            return result
        node = producer
    raise GraphError(f"rewriting {node.where} does not end; rules fired: {dict(counts)}")


def _first_replacement(
    node: Node, rules: Sequence[Rule], editor: GraphEditor, counts: Counter[str]
) -> Value | None:
    for rule in rules:
        for bindings in matches(rule.pattern, node.output, editor, {}):
            result = rule.build(Match(node, bindings, editor))
            if result is None or result is node.output:
                continue
            if result.type != node.output.type:
                raise GraphError(
                    f"rule `{rule.name}` replaces {node.output.type} by {result.type} at {node.where}"
                )
            counts[rule.name] += 1
            return result
    return None
