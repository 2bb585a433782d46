"""Layouts for all rank-4 tensors of a graph, chosen together so that the estimated time is least.

Each operator that works on several layouts is a variable whose labels are those layouts; a convolution is
two, what it reads and what it writes. Elementwise operators take the layout of their operands, since they are
computed with what makes these. Costs are those of the operators in each layout, and those of the changes of
layout between an operator and its readers; readers that want the same layout share one change. The least sum
is found exactly (`tcomp.transform.min_sum`), but for graphs that are too entangled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from tcomp.relay.attributes import integer
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.layouts import PLAIN
from tcomp.relay.op import OPS, LayoutRule
from tcomp.relay.types import FLOAT8, Array, numpy_dtype, stored_as
from tcomp.target.target import Target
from tcomp.target.tile_map import LINE_BYTES
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES
from tcomp.tensor.tensor_cores.wgmma_plan import ARCH
from tcomp.transform.layout_costs import LayoutCosts, factor_of, reduces_pixels
from tcomp.transform.min_sum import Factor, minimize

_SPATIAL_REDUCTIONS = ("reduce_mean", "reduce_max", "reduce_min", "reduce_sum")
_POOLS = ("max_pool2d", "avg_pool2d")
_BLOCKED_TYPES = ("float32", "int8", *FLOAT8)
"""Element types of what convolutions, pools and concatenations read in blocks."""


@dataclass(frozen=True)
class NodeLayouts:
    """The layout in which a node reads its operands, and that of its result."""

    source: str
    result: str


def choose_layouts(graph: Graph, target: Target, stats: Counter[str]) -> Mapping[Node, NodeLayouts]:
    """Layouts of the nodes of a static graph that work on several; the others are plain."""
    problem = _Problem(graph, blocks_for(graph, target), LayoutCosts(target, graph.inputs))
    factors = problem.factors()
    solution = minimize([len(d) for d in problem.domains], factors)
    if solution.fixed:
        stats["layouts fixed in entangled parts"] += len(solution.fixed)
    return problem.layouts(solution.labels)


def blocks_for(graph: Graph, target: Target) -> tuple[int, ...]:
    """Channels of a block to choose from: those of a vector, and half as many where that spares padding.

    A vector is one of sums of products, those of `target.fast_dtype` where there is one. Where sums are in
    squares, blocks are the groups that these multiply. On a GPU a block is what a thread loads at once:
    neighbouring pixels then are whole lines, for the loads of one operator and the stores of the one before.
    Where windows can be tiles a block may be a line of those, which is preferred where estimates are equal.
    None are for float32: tensor cores take none as it is.
    """
    if target.gpu is not None:
        factors = {factor_of(n.inputs[0].dtype, target) for n in graph.nodes if n.op == "conv2d"}
        sizes = {numpy_dtype(stored_as(dtype)).itemsize for dtype in factors if target.multiplies(dtype)}
        units = (LINE_BYTES, CHUNK_BYTES) if target.gpu.arch == ARCH else (CHUNK_BYTES,)
        return tuple(sorted({unit // size for unit in units for size in sizes}, reverse=True))
    quantized = any(n.op == "conv2d" and n.inputs[0].dtype == "int8" for n in graph.nodes)
    dtype = "int8" if quantized else target.fast_dtype
    sums = next(iter(ways_to_sum(target, dtype)), None) if dtype else None
    lanes = target.lanes("float32") if sums is None else sums.block(target)
    channels = [n.output.type.static_shape[1] for n in graph.nodes if n.op == "conv2d"]
    spared = any(0 < c % lanes <= lanes // 2 < c for c in channels)
    return (lanes, lanes // 2) if spared else (lanes,)


def layouts_of(node: Node, blocks: Sequence[int]) -> tuple[str, ...]:
    """The layouts that `node` works on, plain first; its result has rank 4 where there are several."""
    return (PLAIN, *(f"NCHW{b}c" for b in blocks if _works_on_blocks(node, b)))


def _works_on_blocks(node: Node, block: int) -> bool:
    rule = OPS[node.op].layout
    if len(node.outputs) != 1 or node.output.type.rank != 4 or node.output.type.static_shape[1] == 1:
        return False
    if node.op in ("conv2d", *_POOLS):
        weights_known = node.op in _POOLS or isinstance(node.inputs[1], Constant)
        known = node.inputs[0].dtype in _BLOCKED_TYPES
        return known and weights_known and node.attrs["data_layout"] == PLAIN
    if rule is LayoutRule.ELEMENTWISE:
        return _is_blocked_elementwise(node, block)
    if node.op == "concat":
        return integer(node.attrs, "axis") == 1 and node.output.dtype in _BLOCKED_TYPES
    if node.op in _SPATIAL_REDUCTIONS:
        return reduces_pixels(node)
    if node.op == "gather":
        indices = node.inputs[1]
        in_rows = integer(node.attrs, "axis") in (2, 3) and node.inputs[0].type.rank == 4
        return in_rows and isinstance(indices, Constant) and indices.type.rank == 1
    return False


def _is_blocked_elementwise(node: Node, block: int) -> bool:
    """Whether the lanes beyond a ragged channel count stay finite, and every operand has a blocked form.

    Division by a constant is finite: its lanes are filled with ones.
    """
    channels = node.output.type.static_shape[1]
    finite = OPS[node.op].zero_is_finite or (node.op == "div" and isinstance(node.inputs[1], Constant))
    if channels % block and not finite:
        return False
    return all(
        v.type.size == 1
        or isinstance(v, Constant)
        or (v.type.rank == 4 and v.type.static_shape[1] == channels)
        for v in node.inputs
    )


class _Problem:
    """The variables of a graph with their layouts, `domains`, and what the choices cost."""

    def __init__(self, graph: Graph, blocks: Sequence[int], costs: LayoutCosts) -> None:
        self._graph = graph
        self._costs = costs
        self.domains: list[tuple[str, ...]] = []
        self._source: dict[Node, int] = {}
        self._result: dict[Node, int] = {}
        for node in graph.nodes:
            layouts = layouts_of(node, blocks)
            if len(layouts) > 1:
                self._result[node] = self._variable_of(node, layouts)
                apart = node.op == "conv2d" and not Convolution.of(node).is_depthwise
                self._source[node] = self._new(layouts) if apart else self._result[node]

    def layouts(self, labels: Sequence[int]) -> Mapping[Node, NodeLayouts]:
        """What `labels` of the variables mean for each node."""

        def layout(variable: int) -> str:
            return self.domains[variable][labels[variable]]

        return {
            node: NodeLayouts(layout(self._source[node]), layout(result))
            for node, result in self._result.items()
        }

    def factors(self) -> list[Factor]:
        """All costs. Variables for the forms of a tensor with several readers are added to `domains`."""
        found = [self._node_factor(node) for node in self._result]
        readers = {v for n in self._graph.nodes for v in n.inputs} | set(self._graph.outputs)
        for value in (v for n in self._graph.nodes for v in n.outputs):
            if value in readers and value.type.rank == 4:
                found += self._reader_factors(value)
        for value in self._graph.inputs:
            if value in readers and value.type.rank == 4:
                found += self._reader_factors(value)
        return found

    def _new(self, domain: tuple[str, ...]) -> int:
        self.domains.append(domain)
        return len(self.domains) - 1

    def _variable_of(self, node: Node, layouts: tuple[str, ...]) -> int:
        """A new variable; for an elementwise operator that of an operand where it takes the same layouts."""
        if OPS[node.op].layout is not LayoutRule.ELEMENTWISE:
            return self._new(layouts)
        made = [self._made_by(v) for v in node.inputs if v.shape == node.output.shape]
        shared = [v for v in made if v is not None and self.domains[v] == layouts]
        if not shared:
            return self._new(layouts)
        self._merge(shared)
        return shared[0]

    def _merge(self, variables: Sequence[int]) -> None:
        """Let the first variable stand for the others too."""
        first, others = variables[0], set(variables[1:])
        for held in (self._source, self._result):
            held.update({n: first for n, v in held.items() if v in others})

    def _made_by(self, value: Value) -> int | None:
        """The variable of the layout in which `value` is made; None when that is always plain."""
        producer = self._graph.producers.get(value)
        return None if producer is None else self._result.get(producer)

    def _node_factor(self, node: Node) -> Factor:
        source, result = self._source[node], self._result[node]
        if source == result:
            costs = [self._cost(node, layout, layout) for layout in self.domains[result]]
            return Factor((result,), np.array(costs))
        table = [[self._cost(node, s, r) for r in self.domains[result]] for s in self.domains[source]]
        return Factor((source, result), np.array(table))

    def _cost(self, node: Node, source: str, result: str) -> float:
        if node.op == "conv2d":
            return self._costs.convolution(node, source, result)
        if node.op in _POOLS:
            return self._costs.pool(node, result)
        if node.op == "concat":
            return self._costs.concat(node, result)
        if node.op in _SPATIAL_REDUCTIONS or node.op == "gather":
            return self._costs.reading(node, result)
        return self._costs.elementwise(node, result)

    def _reader_factors(self, value: Value) -> list[Factor]:
        """The changes of layout between the maker of `value` and its readers."""
        made = self._made_by(value)
        users = self._graph.users.get(value, ())
        wanted = sorted({self._source[n] for n in users if n in self._source} - {made})
        plain = value in self._graph.outputs or any(n not in self._source for n in users)
        if made is None and not wanted:
            return []
        if len(wanted) + plain == 1:
            changes = self._changes(value, made, self.domains[wanted[0]] if wanted else (PLAIN,))
            return [_over([made, *(wanted or [None])], changes)]
        return [f for form in self._layouts(wanted, plain) for f in self._form(value, form, wanted, plain)]

    def _layouts(self, wanted: Sequence[int], plain: bool) -> list[str]:
        """Every layout that a reader may want."""
        several = [layout for v in wanted for layout in self.domains[v]]
        return list(dict.fromkeys([PLAIN] * plain + several))

    def _form(self, value: Value, layout: str, wanted: Sequence[int], plain: bool) -> list[Factor]:
        """A variable that says whether `value` is made available in `layout`: one change for all readers."""
        exists = self._new(("absent", "present"))
        changes = self._changes(value, self._made_by(value), (layout,))
        found = [_over([self._made_by(value), exists], np.hstack([np.zeros_like(changes), changes]))]
        if plain and layout == PLAIN:
            found.append(Factor((exists,), np.array([inf, 0.0])))
        for reader in wanted:
            missing = [[inf if own == layout else 0.0, 0.0] for own in self.domains[reader]]
            found.append(Factor((reader, exists), np.array(missing)))
        return found

    def _changes(self, value: Value, made: int | None, layouts: Sequence[str]) -> Array:
        """Costs of a change from each layout in which `value` may be made to each of `layouts`."""
        sources = (PLAIN,) if made is None else self.domains[made]
        return np.array([[self._costs.transform(value.type, s, r) for r in layouts] for s in sources])


def _over(variables: Sequence[int | None], costs: Array) -> Factor:
    """A table whose axes are `variables`; None for an axis of one entry."""
    kept = [axis for axis, v in enumerate(variables) if v is not None]
    scope = tuple(v for v in variables if v is not None)
    return Factor(scope, costs.reshape([costs.shape[axis] for axis in kept]))
