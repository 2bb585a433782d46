"""The numpy evaluator: what a graph means. Every other way of running it is checked against this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tcomp.errors import GraphError, InputError
from tcomp.relay.dims import DimExpr
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.op import OPS
from tcomp.relay.specialize import specialize
from tcomp.relay.types import Array, TensorType, type_of

Observe = Callable[[Node, Sequence[Array]], None]
Apply = Callable[[Node, Sequence[Array]], list[Array]]
"""The results of a node from its operands."""


def evaluate_node(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Apply one node's numpy reference and check the result against its inferred types."""
    with np.errstate(all="ignore"):
        results = [np.asarray(r) for r in OPS[node.op].evaluate(inputs, node.attrs)]
    if len(results) != len(node.outputs):
        raise GraphError(f"{node.where} gave {len(results)} results where it has {len(node.outputs)} outputs")
    for value, result in zip(node.outputs, results, strict=True):
        if not _fits(value.type, result):
            raise GraphError(f"{node.where} gave {type_of(result)} where its type is {value.type}")
    return results


def evaluate(
    graph: Graph,
    inputs: Sequence[Array] | Mapping[str, Array],
    observe: Observe | None = None,
    apply: Apply = evaluate_node,
) -> list[Array]:
    """The outputs of `graph`, one array each, from its inputs in order or by name.

    A graph with symbolic dimensions takes its numbers from the inputs' shapes. `observe` is called with
    every node and its results, `apply` gives them. Tensors are dropped after their last use.
    Raises InputError when the inputs do not fit, GraphError when an operator breaks its own type rule.
    """
    arrays = _in_order(graph, inputs)
    _check_inputs(graph, arrays)
    if not graph.is_static:
        shapes = [tuple(int(d) for d in a.shape) for a in arrays]
        graph = specialize(graph, {v.name: s for v, s in zip(graph.inputs, shapes, strict=True)})
    env: dict[Value, Array] = dict(zip(graph.inputs, arrays, strict=True))
    last_use = {v: i for i, node in enumerate(graph.nodes) for v in node.inputs}
    kept = set(graph.outputs)
    for i, node in enumerate(graph.nodes):
        results = apply(node, [_data(v, env) for v in node.inputs])
        if observe is not None:
            observe(node, results)
        env.update(zip(node.outputs, results, strict=True))
        for value in {*node.inputs, *node.outputs}:
            if last_use.get(value, -1) <= i and value not in kept:
                env.pop(value, None)
    return [_data(v, env) for v in graph.outputs]


def _data(value: Value, env: Mapping[Value, Array]) -> Array:
    return value.data if isinstance(value, Constant) else env[value]


def _in_order(graph: Graph, inputs: Sequence[Array] | Mapping[str, Array]) -> list[Array]:
    names = [v.name for v in graph.inputs]
    if isinstance(inputs, Mapping):
        odd = sorted(set(inputs) ^ set(names))
        if odd:
            raise InputError(
                f"input `{odd[0]}` is {'unknown' if odd[0] in inputs else 'missing'}; expected {names}"
            )
        return [np.asarray(inputs[name]) for name in names]
    if len(inputs) != len(names):
        raise InputError(f"{len(inputs)} inputs given, expected {len(names)}: {', '.join(names)}")
    return [np.asarray(a) for a in inputs]


def _check_inputs(graph: Graph, arrays: Sequence[Array]) -> None:
    """Shapes and dtypes fit, and one symbol means one number in all inputs."""
    sizes: dict[str, int] = {}
    for value, array in zip(graph.inputs, arrays, strict=True):
        if not _fits(value.type, array):
            raise InputError(f"input `{value.name}` is {type_of(array)}, expected {value.type}")
        for dim, size in zip(value.shape, array.shape, strict=True):
            if (
                isinstance(dim, DimExpr)
                and str(dim).isidentifier()
                and sizes.setdefault(str(dim), size) != size
            ):
                raise InputError(
                    f"input `{value.name}` has `{dim}` = {size}, but another input has {sizes[str(dim)]}"
                )


def _fits(expected: TensorType, array: Array) -> bool:
    if type_of(array).dtype != expected.dtype or array.ndim != expected.rank:
        return False
    return all(isinstance(d, DimExpr) or d == n for d, n in zip(expected.shape, array.shape, strict=True))
