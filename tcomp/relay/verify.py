"""The verifier: what every graph must satisfy, checked after every pass."""

from __future__ import annotations

from tcomp.errors import GraphError, TypeRuleError
from tcomp.relay.graph import Constant, Graph, Node, Value, subgraphs
from tcomp.relay.op import OPS
from tcomp.relay.types import type_of


def verify(graph: Graph) -> None:
    """Check `graph` and its nested graphs.

    Values are defined once and before their use, operators exist, attributes are complete, output types
    are the inferred ones, constants have the type they claim.

    Raises GraphError with the first violation, naming the node.
    """
    defined: set[Value] = set()
    for value in graph.inputs:
        if value in defined or isinstance(value, Constant):
            raise GraphError(f"graph `{graph.name}`: input `{value.name}` is listed twice or is a constant")
        defined.add(value)
    for node in graph.nodes:
        for value in node.inputs:
            if isinstance(value, Constant):
                _check_constant(value, node)
            elif value not in defined:
                raise GraphError(f"{node.where} reads `{value.name}` {value.type} before it is produced")
        _check_node(node)
        for value in node.outputs:
            if value in defined:
                raise GraphError(f"{node.where} defines `{value.name}` a second time")
            defined.add(value)
    for value in graph.outputs:
        if value not in defined and not isinstance(value, Constant):
            raise GraphError(f"graph `{graph.name}`: output `{value.name}` {value.type} is never produced")


def _check_constant(value: Constant, node: Node) -> None:
    if type_of(value.data) != value.type:
        raise GraphError(
            f"{node.where}: constant `{value.name}` holds {type_of(value.data)}, claims {value.type}"
        )


def _check_node(node: Node) -> None:
    if node.op not in OPS:
        raise GraphError(f"{node.where}: there is no such operator")
    declaration = OPS[node.op]
    if list(node.attrs) != list(declaration.attrs):
        raise GraphError(
            f"{node.where} has attributes {list(node.attrs)}, declared are {list(declaration.attrs)}"
        )
    for _, body in subgraphs(node):
        verify(body)
    try:
        inferred = declaration.infer_types([v.type for v in node.inputs], node.attrs)
    except TypeRuleError as error:
        raise GraphError(f"{node.where}: {error}") from None
    actual = tuple(v.type for v in node.outputs)
    if inferred != actual:
        raise GraphError(f"{node.where} has output types {_list(actual)}, its rule gives {_list(inferred)}")


def _list(types: tuple[object, ...]) -> str:
    return ", ".join(str(t) for t in types)
