"""From an optimized graph and its scheduled kernels to a program."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tcomp.errors import UnsupportedError
from tcomp.plan.arena import place
from tcomp.plan.order import Task, choose_order, lifetimes
from tcomp.plan.program import (
    Copy,
    Place,
    PlannedConstant,
    PlannedKernel,
    Program,
    Run,
    ScheduledKernels,
    Step,
    Tensor,
    aligned,
)
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.op import OPS, FusionKind
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import Packing


def plan(graph: Graph, scheduled: ScheduledKernels) -> Program:
    """Order the kernels of `graph`, place every buffer, lay out the constants.

    `graph` has only `fused` nodes and views (reshape); `scheduled` has each kernel by its key.
    Raises UnsupportedError for any other node, GraphError for symbolic shapes.
    """
    buffers = _Buffers.of(graph)
    kernels = _Kernels.of(graph, scheduled)
    tasks = [
        Task(
            reads=tuple(buffers.number(v) for v in node.inputs if not isinstance(buffers.root(v), Constant)),
            writes=tuple(buffers.number(v) for v in node.outputs),
            scratch=sum(aligned(t.nbytes) for t in kernels.of_node[node].scheduled.scratch),
        )
        for node in kernels.nodes
    ]
    direct = buffers.written_by_kernels(graph)
    sizes = {
        number: root.type.nbytes
        for root, number in buffers.numbers.items()
        if root not in direct and root in graph.producers
    }
    ordering = choose_order(tasks, sizes)
    spans, owners = lifetimes(tasks, ordering.order, sizes)
    arena = place(spans)
    places = {
        owner: Place("arena", at)
        for owner, at in zip(owners, arena.offsets, strict=True)
        if owner is not None
    }
    places |= {buffers.numbers[root]: Place("output", index) for root, index in direct.items()}
    places |= {buffers.number(value): Place("input", i) for i, value in enumerate(graph.inputs)}
    scratch = {
        span.first: at for owner, span, at in zip(owners, spans, arena.offsets, strict=True) if owner is None
    }
    constants = _Constants()
    steps: list[Step] = []
    for step, index in enumerate(ordering.order):
        node = kernels.nodes[index]
        steps.append(_run(node, kernels, buffers, places, constants, scratch.get(step, 0)))
    steps += _copies(graph, buffers, places, constants, direct)
    return Program(
        name=graph.name,
        inputs=tuple(Tensor(v.name or f"input{i}", v.type) for i, v in enumerate(graph.inputs)),
        outputs=tuple(Tensor(v.name or f"output{i}", v.type) for i, v in enumerate(graph.outputs)),
        kernels=tuple(kernels.distinct.values()),
        steps=tuple(steps),
        constants=tuple(constants.entries.values()),
        arena_bytes=arena.nbytes,
        live_bytes=ordering.live_bytes,
        weights_bytes=constants.end,
    )


def distinct_kernels(graph: Graph) -> dict[str, Kernel]:
    """The kernels of `graph` by key, in order of first use."""
    kernels: dict[str, Kernel] = {}
    for node in graph.nodes:
        if node.op == "fused":
            kernel = Kernel.of(node)
            kernels.setdefault(kernel.key, kernel)
    return kernels


@dataclass
class _Buffers:
    """Numbers of distinct buffers; a view has the number of what it views."""

    roots: dict[Value, Value]
    numbers: dict[Value, int]

    @staticmethod
    def of(graph: Graph) -> _Buffers:
        roots: dict[Value, Value] = {}
        for node in graph.nodes:
            if _is_view(node):
                roots[node.output] = roots.get(node.inputs[0], node.inputs[0])
        buffers = _Buffers(roots, {})
        for value in (*graph.inputs, *(v for n in graph.nodes if n.op == "fused" for v in n.outputs)):
            buffers.numbers[value] = len(buffers.numbers)
        return buffers

    def root(self, value: Value) -> Value:
        return self.roots.get(value, value)

    def number(self, value: Value) -> int:
        return self.numbers[self.root(value)]

    def written_by_kernels(self, graph: Graph) -> dict[Value, int]:
        """Buffers that kernels write straight into a model output, and which: the first that is it."""
        direct: dict[Value, int] = {}
        for index, value in enumerate(graph.outputs):
            root = self.root(value)
            if root in graph.producers and root not in direct:
                direct[root] = index
        return direct


@dataclass
class _Kernels:
    """Kernel nodes with the kernels they call; equal kernels are one."""

    nodes: list[Node]
    of_node: dict[Node, PlannedKernel]
    distinct: dict[str, PlannedKernel]

    @staticmethod
    def of(graph: Graph, scheduled: ScheduledKernels) -> _Kernels:
        nodes: list[Node] = []
        of_node: dict[Node, PlannedKernel] = {}
        distinct: dict[str, PlannedKernel] = {}
        for node in graph.nodes:
            if _is_view(node):
                continue
            if node.op != "fused":
                raise UnsupportedError(f"{node.where} is not in a kernel; run the fuse pass before planning")
            kernel = Kernel.of(node)
            entry = distinct.setdefault(kernel.key, PlannedKernel(kernel, scheduled[kernel.key]))
            nodes.append(node)
            of_node[node] = entry
        return _Kernels(nodes, of_node, distinct)

    def index(self, node: Node) -> int:
        return list(self.distinct).index(self.of_node[node].kernel.key)


@dataclass
class _Constants:
    """The weights blob: equal constants that are packed alike are stored once."""

    entries: dict[tuple[str, str], PlannedConstant] = field(
        default_factory=dict["tuple[str, str]", PlannedConstant]
    )
    end: int = 0

    def place(self, constant: Constant, packing: Packing | None, packed_for: str) -> Place:
        key = (_digest(constant), "" if packing is None else packed_for)
        if key not in self.entries:
            entry = PlannedConstant(constant, packing, self.end)
            self.entries[key] = entry
            self.end += aligned(entry.nbytes)
        return Place("weights", self.entries[key].offset)


def _digest(constant: Constant) -> str:
    data = np.ascontiguousarray(constant.data)
    return (
        f"{constant.type} "
        + hashlib.blake2b(data.view(np.uint8).reshape(-1).data, digest_size=16).hexdigest()
    )


def _is_view(node: Node) -> bool:
    return node.op != "fused" and OPS[node.op].kind is FusionKind.VIEW


def _run(
    node: Node,
    kernels: _Kernels,
    buffers: _Buffers,
    places: dict[int, Place],
    constants: _Constants,
    scratch_offset: int,
) -> Run:
    planned = kernels.of_node[node]
    arguments: list[Place] = []
    for index, value in enumerate(node.inputs):
        root = buffers.root(value)
        if isinstance(root, Constant):
            packing = planned.scheduled.packing.get(index)
            arguments.append(constants.place(root, packing, f"{index} {planned.kernel.key}"))
        else:
            arguments.append(places[buffers.number(value)])
    for type_ in planned.scheduled.scratch:
        arguments.append(Place("arena", scratch_offset))
        scratch_offset += aligned(type_.nbytes)
    arguments += [places[buffers.number(value)] for value in node.outputs]
    return Run(kernels.index(node), tuple(arguments), node.name)


def _copies(
    graph: Graph,
    buffers: _Buffers,
    places: dict[int, Place],
    constants: _Constants,
    direct: dict[Value, int],
) -> Sequence[Copy]:
    """Copies into those outputs that no kernel writes."""
    copies: list[Copy] = []
    for index, value in enumerate(graph.outputs):
        root = buffers.root(value)
        if direct.get(root) == index:
            continue
        source = (
            constants.place(root, None, "") if isinstance(root, Constant) else places[buffers.number(value)]
        )
        copies.append(Copy(source, Place("output", index), value.type.nbytes, value.name))
    return copies
