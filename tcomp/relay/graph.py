"""The dataflow graph: values, nodes and graphs, all immutable.

A `Graph` is a list of nodes in an order in which every value is produced before it is used. Values are
compared by identity: two values with the same name and type are different tensors. A `Constant` is a
value that carries its data and needs no producer. Passes never edit a graph; they build a new one
(`tcomp.relay.builder`, `tcomp.relay.rewrite`).

Nested graphs are node attributes (`If` branches, fused kernels). They are closed: what a body reads from
outside comes in through the node's inputs and the body's own inputs, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Union, cast

import numpy as np

from tcomp.relay.dims import Dim
from tcomp.relay.types import Array, TensorType, type_of

Attr = Union[bool, int, float, str, None, Dim, "tuple[Attr, ...]", "Graph"]
Attrs = Mapping[str, Attr]


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor of a graph. `name` is a hint for people and may repeat; identity is the object."""

    type: TensorType
    name: str = ""

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype


@dataclass(frozen=True, eq=False)
class Constant(Value):
    """A value known at compile time. `data` is read-only and of exactly `type`."""

    data: Array = field(default_factory=lambda: np.zeros(()))

    @staticmethod
    def of(data: Array, name: str = "") -> Constant:
        array: Array = np.asarray(data)
        if array.flags.writeable:
            array = cast(Array, array.view())
            array.flags.writeable = False
        return Constant(type_of(array), name, array)


@dataclass(frozen=True, eq=False)
class Node:
    """One application of operator `op`. `name` says where the node came from, for messages."""

    op: str
    inputs: tuple[Value, ...]
    attrs: Attrs
    outputs: tuple[Value, ...]
    name: str = ""

    @property
    def output(self) -> Value:
        """The only output; most operators have one."""
        (value,) = self.outputs
        return value

    @property
    def where(self) -> str:
        """How messages name this node."""
        return f"`{self.op}` node `{self.name}`" if self.name else f"`{self.op}` node"


@dataclass(frozen=True, eq=False)
class Graph:
    """A dataflow graph. `nodes` are in execution order."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    name: str = "main"

    @cached_property
    def producers(self) -> Mapping[Value, Node]:
        """The node that makes each value; inputs and constants are absent."""
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def users(self) -> Mapping[Value, tuple[Node, ...]]:
        """The nodes that read each value, a node once for each operand. Graph outputs do not count."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                found.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in found.items()}

    def use_count(self, value: Value) -> int:
        """How often `value` is read, counting each graph output as a read."""
        return len(self.users.get(value, ())) + sum(v is value for v in self.outputs)

    @cached_property
    def constants(self) -> tuple[Constant, ...]:
        """Distinct constants in order of first use, those of nested graphs not included."""
        used = [v for node in self.nodes for v in node.inputs] + list(self.outputs)
        return tuple(dict.fromkeys(v for v in used if isinstance(v, Constant)))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Those of the outputs; `output0`, `output1`, ... by their places of what has none."""
        return tuple(v.name or f"output{i}" for i, v in enumerate(self.outputs))

    @property
    def is_static(self) -> bool:
        values = [*self.inputs, *(v for n in self.nodes for v in n.outputs)]
        return all(v.type.is_static for v in values)


def subgraphs(node: Node) -> Iterator[tuple[str, Graph]]:
    """The nested graphs among a node's attributes, with the attribute's name."""
    for name, attr in node.attrs.items():
        if isinstance(attr, Graph):
            yield name, attr


def topological(outputs: Iterable[Value], producers: Mapping[Value, Node]) -> list[Node]:
    """The nodes that `outputs` need, producers first, otherwise in order of demand. Iterative."""
    order: list[Node] = []
    done: set[Node] = set()
    stack = [(producers[v], False) for v in reversed(list(outputs)) if v in producers]
    while stack:
        node, expanded = stack.pop()
        if node in done:
            continue
        if expanded:
            done.add(node)
            order.append(node)
            continue
        stack.append((node, True))
        stack += [(producers[v], False) for v in reversed(node.inputs) if v in producers]
    return order
