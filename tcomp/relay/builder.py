"""Build graphs: each call applies an operator, infers its types and appends the node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tcomp.errors import TypeRuleError
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Attr, Attrs, Constant, Graph, Node, Value, topological
from tcomp.relay.op import OPS
from tcomp.relay.types import TensorType, numpy_dtype


def make_node(
    op: str,
    inputs: Sequence[Value],
    attrs: Attrs | None = None,
    name: str = "",
    output_names: Sequence[str] = (),
) -> Node:
    """A node with completed attributes and inferred output types.

    Raises TypeRuleError naming the node when the operator refuses its operands or attributes.
    """
    declaration = OPS[op]
    try:
        complete = declaration.complete_attrs(attrs or {})
        types = declaration.infer_types([v.type for v in inputs], complete)
    except TypeRuleError as error:
        operands = ", ".join(str(v.type) for v in inputs)
        where = f" (node `{name}`)" if name else ""
        raise TypeRuleError(f"{error}{where}; operands: {operands}") from None
    names = list(output_names) + [""] * (len(types) - len(output_names))
    outputs = tuple(Value(t, n) for t, n in zip(types, names, strict=False))
    return Node(op, tuple(inputs), complete, outputs, name)


class GraphBuilder:
    """Collects nodes in order.

    b = GraphBuilder("mlp")
    x = b.input("x", ("batch", 128))
    y = b.op("matmul", x, b.constant(w))
    graph = b.build(y)
    """

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self._inputs: list[Value] = []
        self._nodes: list[Node] = []

    def input(self, name: str, shape: Iterable[Dim], dtype: str = "float32") -> Value:
        value = Value(TensorType(tuple(shape), dtype), name)
        self._inputs.append(value)
        return value

    def constant(self, data: npt.ArrayLike, dtype: str | None = None, name: str = "") -> Constant:
        return Constant.of(np.asarray(data, dtype=None if dtype is None else numpy_dtype(dtype)), name)

    def node(self, op: str, *inputs: Value, name: str = "", **attrs: Attr) -> Node:
        node = make_node(op, inputs, attrs, name)
        self._nodes.append(node)
        return node

    def op(self, op: str, *inputs: Value, name: str = "", **attrs: Attr) -> Value:
        """Apply a single-output operator and return its output."""
        return self.node(op, *inputs, name=name, **attrs).output

    def add(self, node: Node) -> Node:
        """Append a node made elsewhere."""
        self._nodes.append(node)
        return node

    def build(self, *outputs: Value) -> Graph:
        return Graph(tuple(self._inputs), tuple(self._nodes), outputs, self.name)


def graph_of(
    inputs: Sequence[Value], outputs: Sequence[Value], nodes: Iterable[Node], name: str = "main"
) -> Graph:
    """The graph of those `nodes` that `outputs` need, in topological order."""
    producers = {v: n for n in nodes for v in n.outputs}
    return Graph(tuple(inputs), tuple(topological(outputs, producers)), tuple(outputs), name)
