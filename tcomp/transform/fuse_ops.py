"""Fusion: group nodes into kernels.

Every group leaves through one node, its exit: what the other members make is read inside the group
alone. Such groups never form a cycle, since a path from one group's exit back into the group would be a
cycle among the nodes themselves. The node where all paths from a member meet again is its immediate
post-dominator; a group grows forward from post-dominator to post-dominator and backwards over producers
whose readers are all members.

1. Contractions, then reductions, take the elementwise nodes behind them (epilogue), and what widens int8
   operands of these. Pointwise, depthwise and pointwise convolutions that alone read one another are one
   group where the tensors between them are large, and so are convolutions and the max pooling behind them.
2. Reductions take the elementwise nodes in front of them (prologue), which each row reads once, and on GPUs
   gathers of rows. Contractions
   that can take the slices and transposes of rows in front of them, what unpacks their weights, and a
   transpose behind them.
3. What is left, elementwise and movement, groups among itself.
What only arranges memory stays between the kernels, and the plan aliases it: reshapes; concatenations whose
operands lie one behind the other and come from kernels with an anchor, which can write them in place; groups
of the third kind in which every node is of this sort (slices of whole blocks).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tcomp.relay.attributes import integer, integers
from tcomp.relay.builder import make_node
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.op import OPS, FusionKind
from tcomp.tensor.cpu.conv_chain import ConvChain
from tcomp.tensor.cpu.conv_pool import ConvPool
from tcomp.transform.pass_ import Pass, declare_pass

_INJECTIVE = (FusionKind.ELEMENTWISE, FusionKind.MOVEMENT)


@declare_pass
@dataclass(frozen=True)
class FuseOps(Pass):
    """Put every node but views into a `fused` node.

    A kernel is one anchor with prologue and epilogue, or a group of elementwise and movement nodes.
    `max_depth` bounds the number of nodes of a group. A node of `expensive_flops` or more operations an
    element is not moved to where it would be computed more than once. Chains of convolutions are weighed for
    `cores` cores with second-level caches of `near_bytes`; 0 makes none. Slices and parts of concatenations
    share memory where they begin at multiples of `alignment` bytes, and are computed elsewhere. Reductions
    take gathers of whole rows in front of them with `gathers`: on GPUs a kernel less is a launch less.
    """

    name: ClassVar[str] = "fuse-ops"
    max_depth: int = 48
    expensive_flops: int = 5
    near_bytes: int = 0
    cores: int = 1
    alignment: int = 1
    gathers: bool = False

    def arranges(self, node: Node) -> bool:
        """Whether `node` only arranges memory, outside kernels."""
        found = OPS[node.op].aliases_of(node)
        return bool(found) and all(alias.offset % self.alignment == 0 for alias in found)

    def is_final(self, node: Node) -> bool:
        """Whether `node` may stand in the optimized graph as it is: a kernel, or an arrangement of memory."""
        return node.op == "fused" or _kind(node) is FusionKind.VIEW or self.arranges(node)

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        if all(map(self.is_final, graph.nodes)):
            return graph
        groups = _Grouping(graph, self).groups()
        nodes: list[Node] = []
        for group in groups:
            nodes += group if all(map(self.is_final, group)) else [_fused_node(group, graph)]
        stats["kernels"] += sum(n.op == "fused" for n in nodes)
        stats["nodes in kernels"] += len(graph.nodes) - sum(n.op != "fused" for n in nodes)
        return Graph(graph.inputs, tuple(nodes), graph.outputs, graph.name)


class _Grouping:
    """The groups of a graph under construction."""

    def __init__(self, graph: Graph, options: FuseOps) -> None:
        self._graph = graph
        self._options = options
        self._index = {node: i for i, node in enumerate(graph.nodes)}
        self._post_dominator = _post_dominators(graph)
        self._group_of: dict[Node, list[Node]] = {}
        self._outputs = frozenset(graph.outputs)
        self._arranged: set[Node] = set()

    def groups(self) -> list[list[Node]]:
        """Every node in exactly one group; groups and their members in execution order."""
        nodes = self._graph.nodes
        for kind in (FusionKind.CONTRACTION, FusionKind.REDUCTION):
            for node in nodes:
                if _kind(node) is kind:
                    self._start(node)
                    self._grow_epilogue(node)
                    self._take_dequantized(node)
        if self._options.near_bytes:
            for node in nodes:
                self._chain(node)
                self._pooled(node)
        for node in nodes:
            if _kind(node) is FusionKind.REDUCTION:
                self._grow_backward(self._group_of[node], self._is_prologue)
            elif OPS[node.op].takes_movement:
                self._grow_backward(self._group_of[node], lambda n: _moves_rows(n) or _unpacks(n))
        self._arranged = {n for n in nodes if self._is_assembled_in_place(n)}
        for node in nodes:
            if node not in self._group_of:
                self._start(node)
                if node not in self._arranged and _kind(node) in _INJECTIVE:
                    self._grow_injective(node)
                    self._grow_backward(self._group_of[node], lambda producer: _kind(producer) in _INJECTIVE)
        found = {id(g): sorted(g, key=self._index.__getitem__) for g in self._group_of.values()}
        return sorted(found.values(), key=lambda group: self._index[group[-1]])

    def _is_prologue(self, node: Node) -> bool:
        """Of a reduction, which reads each element once."""
        return _kind(node) is FusionKind.ELEMENTWISE or (self._options.gathers and _gathers_rows(node))

    def _is_assembled_in_place(self, node: Node) -> bool:
        """Whether `node` joins operands one behind the other and an anchored kernel makes one of them."""
        if node.op != "concat" or not self._options.arranges(node):
            return False
        return any(self._producer(value) in self._group_of for value in node.inputs)

    def _producer(self, value: Value) -> Node | None:
        """The node that makes `value` or what it is a view of."""
        producer = self._graph.producers.get(value)
        while producer is not None and _kind(producer) is FusionKind.VIEW:
            producer = self._graph.producers.get(producer.inputs[0])
        return producer

    def _start(self, node: Node) -> None:
        self._group_of[node] = [node]

    def _join(self, group: list[Node], nodes: Iterable[Node]) -> None:
        for node in nodes:
            group.append(node)
            self._group_of[node] = group

    def _grow_epilogue(self, anchor: Node) -> None:
        """Take elementwise nodes behind `anchor` that have its output's shape, transposed where it allows."""
        if len(anchor.outputs) != 1:
            return

        def elementwise(last: Node) -> Node:
            shape = last.output.shape
            return self._grow_forward(
                last, lambda node: _kind(node) is FusionKind.ELEMENTWISE and node.output.shape == shape
            )

        last = elementwise(anchor)
        if OPS[anchor.op].takes_movement:
            moved = self._grow_forward(last, lambda node: node.op == "transpose" and _moves_rows(node))
            if moved is not last:
                elementwise(moved)

    def _take_dequantized(self, anchor: Node) -> None:
        """Take what widens int8 operands of the epilogue of `anchor`, which alone reads them."""
        group = self._group_of[anchor]
        for value, reader in [(v, n) for n in group if n is not anchor for v in n.inputs]:
            chain = self._dequantizing(value, reader)
            if len(group) + len(chain) <= self._options.max_depth:
                self._join(group, chain)

    def _dequantizing(self, value: Value, reader: Node) -> list[Node]:
        """The elementwise nodes, each read by the next one alone, that make `value` of an int8 one.

        None where it is made in another way.
        """
        chain: list[Node] = []
        while True:
            producer = self._graph.producers.get(value)
            if producer is None or producer in self._group_of or value in self._outputs:
                return []
            if _kind(producer) is not FusionKind.ELEMENTWISE or self._graph.users[value] != (reader,):
                return []
            chain.append(producer)
            variable = [v for v in producer.inputs if not isinstance(v, Constant)]
            if len(variable) != 1 or variable[0].type.shape != value.type.shape:
                return []
            (value,), reader = variable, producer
            if producer.op == "cast" and value.dtype == "int8":
                return chain

    def _chain(self, last: Node) -> None:
        """Join the groups of the convolutions that `last` ends a chain of, where one kernel is faster."""
        anchors = [last]
        while len(anchors) < 3:
            before = self._anchor_before(anchors[0]) if _has_constant_weights(anchors[0]) else None
            if before is None:
                return
            anchors.insert(0, before)
        groups = [self._group_of[anchor] for anchor in anchors]
        chain = ConvChain.of(anchors)
        if chain is None or sum(map(len, groups)) > self._options.max_depth:
            return
        if chain.pays(self._options.near_bytes, self._options.cores):
            for group in groups[:-1]:
                self._join(groups[-1], group)

    def _pooled(self, pool: Node) -> None:
        """Join the group of the convolution that a max pooling alone reads, where one kernel is faster."""
        conv = self._anchor_before(pool) if pool.op == "max_pool2d" else None
        if conv is None or not _has_constant_weights(conv):
            return
        chain, group = ConvPool.of((conv, pool)), self._group_of[conv]
        if chain is None or len(group) + len(self._group_of[pool]) > self._options.max_depth:
            return
        if chain.pays(self._options.near_bytes, self._options.cores):
            self._join(self._group_of[pool], group)

    def _anchor_before(self, anchor: Node) -> Node | None:
        """The contraction whose group makes what `anchor` alone reads as its first operand."""
        data = anchor.inputs[0]
        producer = self._graph.producers.get(data)
        if producer is None or self._graph.users[data] != (anchor,) or data in self._outputs:
            return None
        first = [n for n in self._group_of.get(producer, ()) if _kind(n) is FusionKind.CONTRACTION]
        return first[0] if len(first) == 1 else None

    def _grow_injective(self, start: Node) -> None:
        """Take elementwise and movement nodes behind `start` where nothing expensive is computed twice."""

        def fits(node: Node) -> bool:
            return _kind(node) in _INJECTIVE and not self._repeats(self._group_of[start], node)

        self._grow_forward(start, fits)

    def _grow_forward(self, start: Node, fits: Callable[[Node], bool]) -> Node:
        """Take the nodes behind `start`, an exit of its group, as long as they fit; the new exit."""
        group = self._group_of[start]
        exit_node = start
        while True:
            meeting = self._post_dominator.get(exit_node)
            if meeting is None or any(v in self._outputs for v in exit_node.outputs):
                return exit_node
            between = self._between(exit_node, meeting)
            if between is None or len(group) + len(between) > self._options.max_depth:
                return exit_node
            if not all(n not in self._group_of and n not in self._arranged and fits(n) for n in between):
                return exit_node
            self._join(group, between)
            exit_node = meeting

    def _between(self, start: Node, end: Node) -> list[Node] | None:
        """The nodes on paths from `start` to `end`, `end` included; None when they are too many."""
        found: dict[Node, None] = {end: None}
        stack = [n for v in start.outputs for n in self._graph.users.get(v, ())]
        while stack:
            node = stack.pop()
            if node in found:
                continue
            if len(found) >= self._options.max_depth:
                return None
            found[node] = None
            stack += [n for v in node.outputs for n in self._graph.users.get(v, ())]
        return sorted(found, key=self._index.__getitem__)

    def _grow_backward(self, group: list[Node], fits: Callable[[Node], bool]) -> None:
        """Take producers that the group alone reads, unless that computes something expensive repeatedly."""
        members = set(group)
        stack = [(v, n) for n in group for v in n.inputs]
        while stack and len(group) < self._options.max_depth:
            value, reader = stack.pop()
            producer = self._graph.producers.get(value)
            if producer is None or producer in self._group_of or not fits(producer):
                continue
            if producer in self._arranged:
                continue
            if value in self._outputs or not all(user in members for user in self._graph.users[value]):
                continue
            if self._repeats([producer], reader):
                continue
            self._join(group, [producer])
            members.add(producer)
            stack += [(v, producer) for v in producer.inputs]

    def _repeats(self, group: list[Node], node: Node) -> bool:
        """Whether computing the group inside `node` computes something expensive several times an element."""
        elements = max(_elements(v) for v in (*node.inputs, *node.outputs))
        return any(
            OPS[n.op].flops_per_element >= self._options.expensive_flops and _elements(n.output) < elements
            for n in group
        )


def _unpacks(node: Node) -> bool:
    """Whether `node` computes weights from packed constants."""
    return OPS[node.op].unpacks and all(isinstance(v, Constant) for v in node.inputs)


def _moves_rows(node: Node) -> bool:
    """Whether `node` slices or transposes with the innermost axis in place: rows stay rows of neighbours."""
    if OPS[node.op].aliases_of(node) or not node.output.type.is_static:
        return False
    if node.op == "transpose":
        return integers(node.attrs, "axes")[-1] == node.output.type.rank - 1
    return node.op == "slice" and integers(node.attrs, "strides")[-1] == 1


def _gathers_rows(node: Node) -> bool:
    """Whether `node` gathers along another axis than the innermost."""
    return node.op == "gather" and integer(node.attrs, "axis") != node.inputs[0].type.rank - 1


def _kind(node: Node) -> FusionKind:
    return OPS[node.op].kind


def _elements(value: Value) -> int:
    return int(np.prod(value.type.static_shape, dtype=np.int64)) if value.type.is_static else 0


def _post_dominators(graph: Graph) -> Mapping[Node, Node | None]:
    """For each node, the first node that every path from it to an output passes; None if there is none.

    Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm", on a graph without cycles: one walk
    backwards.
    """
    depth: dict[Node | None, int] = {None: 0}
    found: dict[Node, Node | None] = {}
    outputs = frozenset(graph.outputs)

    def common(a: Node | None, b: Node | None) -> Node | None:
        while a is not b:
            if depth[a] < depth[b]:
                a, b = b, a
            a = found[a] if a is not None else None
        return a

    for node in reversed(graph.nodes):
        users = [n for v in node.outputs for n in graph.users.get(v, ())]
        meeting: Node | None = None
        if users and not any(v in outputs for v in node.outputs):
            meeting = users[0]
            for user in users[1:]:
                meeting = common(meeting, user)
        found[node] = meeting
        depth[node] = depth[meeting] + 1
    return found


def _has_constant_weights(node: Node) -> bool:
    """Whether `node` is a convolution of images by constant weights."""
    return node.op == "conv2d" and isinstance(node.inputs[1], Constant)


def _fused_node(group: list[Node], graph: Graph) -> Node:
    """The kernel of `group`: scalar constants stay in its body, everything else comes in as an input."""
    made = {v for n in group for v in n.outputs}
    outside: dict[Value, Value] = {}
    for value in (v for n in group for v in n.inputs):
        if value not in made and not _is_scalar(value):
            outside.setdefault(value, Value(value.type))
    nodes = [
        Node(n.op, tuple(outside.get(v, v) for v in n.inputs), n.attrs, n.outputs, n.name) for n in group
    ]
    results = [v for n in group for v in n.outputs if _is_read_outside(v, group, graph)]
    body = Graph(tuple(outside.values()), tuple(nodes), tuple(results), "body")
    name = next((n.name for n in group if _kind(n) not in _INJECTIVE), group[0].name)
    fused = make_node("fused", list(outside), {"body": body}, name)
    return Node(fused.op, fused.inputs, fused.attrs, tuple(results), fused.name)


def _is_scalar(value: Value) -> bool:
    return isinstance(value, Constant) and value.data.size == 1


def _is_read_outside(value: Value, group: list[Node], graph: Graph) -> bool:
    if value in graph.outputs:
        return True
    return any(user not in group for user in graph.users.get(value, ()))
