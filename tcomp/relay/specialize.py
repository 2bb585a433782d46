"""Give symbolic dimensions their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcomp.errors import InputError
from tcomp.relay.builder import make_node
from tcomp.relay.dims import Dim, DimExpr, substitute, symbols_of
from tcomp.relay.graph import Attr, Constant, Graph, Node, Value


def specialize(graph: Graph, input_shapes: Mapping[str, Sequence[int]]) -> Graph:
    """`graph` with every symbol replaced that the shapes of the named inputs determine.

    Raises InputError for an unknown input, and for a shape that contradicts a declared one or another's.
    """
    values: dict[str, Dim] = {}
    by_name = {v.name: v for v in graph.inputs}
    for name, shape in input_shapes.items():
        if name not in by_name:
            raise InputError(f"--input-shape names `{name}`; the inputs are {', '.join(by_name)}")
        _unify(by_name[name], tuple(shape), values)
    return substitute_symbols(graph, values) if values else graph


def substitute_symbols(graph: Graph, values: Mapping[str, Dim]) -> Graph:
    """`graph` with symbols replaced in all types and attributes, types inferred again."""
    renamed: dict[Value, Value] = {v: Value(v.type.substitute(values), v.name) for v in graph.inputs}
    nodes: list[Node] = []
    for node in graph.nodes:
        operands = [v if isinstance(v, Constant) else renamed[v] for v in node.inputs]
        attrs = {k: _attr(v, values) for k, v in node.attrs.items()}
        new = make_node(node.op, operands, attrs, node.name, [v.name for v in node.outputs])
        renamed.update(zip(node.outputs, new.outputs, strict=True))
        nodes.append(new)
    outputs = tuple(v if isinstance(v, Constant) else renamed[v] for v in graph.outputs)
    return Graph(tuple(renamed[v] for v in graph.inputs), tuple(nodes), outputs, graph.name)


def _unify(value: Value, shape: tuple[int, ...], values: dict[str, Dim]) -> None:
    wrong = InputError(
        f"--input-shape gives `{value.name}` the shape {list(shape)}, which contradicts {value.type}"
        + (f" with {', '.join(f'{k}={v}' for k, v in values.items())}" if values else "")
    )
    if len(shape) != value.type.rank:
        raise wrong
    for dim, size in zip(value.shape, shape, strict=True):
        if isinstance(dim, DimExpr) and str(dim).isidentifier():
            if values.setdefault(str(dim), size) != size:
                raise wrong
        elif symbols_of(dim) <= set(values) and substitute(dim, values) != size:
            raise wrong


def _attr(attr: Attr, values: Mapping[str, Dim]) -> Attr:
    if isinstance(attr, DimExpr):
        return substitute(attr, values)
    if isinstance(attr, tuple):
        return tuple(_attr(a, values) for a in attr)
    return substitute_symbols(attr, values) if isinstance(attr, Graph) else attr
