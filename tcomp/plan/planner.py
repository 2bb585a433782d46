"""From an optimized graph and its scheduled kernels to a program."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tcomp.plan.arena import live_bytes, place
from tcomp.plan.buffers import Buffers, Job, OutputCopy, Piece, jobs_of, writers, written_values
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
    Turn,
    aligned,
)
from tcomp.plan.streams import branched, choose_streams
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.target.target import Gpu
from tcomp.tensor.gpu_load import Load, copy_load, load_of
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import Packing


def plan(graph: Graph, scheduled: ScheduledKernels) -> Program:
    """Order the kernels of `graph`, place every buffer, lay out the constants.

    `graph` has only `fused` nodes and aliases (reshape, slices and concatenations of whole blocks);
    `scheduled` has each kernel by its key.
    Raises UnsupportedError for any other node, GraphError for symbolic shapes.
    """
    return plan_variants(graph, [scheduled])[0]


def plan_variants(
    graph: Graph, variants: Sequence[ScheduledKernels], gpus: Sequence[Gpu] = ()
) -> tuple[Program, ...]:
    """One program for each of `variants`, which schedule the same kernels. Order, arena, weights are common.

    A constant that several variants pack alike is stored once. Scratch has room for what any of them needs.
    On `gpus`, of the variants, steps that leave room on all of them run beside others.
    Raises as `plan` does.
    """
    kernels = [_Kernels.of(graph, scheduled) for scheduled in variants]

    def in_place(node: Node) -> list[int]:
        allowed = [k.in_place(node) for k in kernels]
        return sorted(allowed[0].intersection(*allowed[1:]))

    buffers = Buffers.of(graph, in_place)
    jobs = jobs_of(graph, buffers)
    tasks = _tasks(graph, jobs, buffers, kernels)
    sizes = {
        number: base.type.nbytes
        for base, number in buffers.numbers.items()
        if base not in buffers.direct and base in graph.producers
    }
    streams = choose_streams(tasks, _loads(jobs, kernels, gpus)) if gpus and jobs else None
    order = choose_order(tasks, sizes).order if streams is None else streams.order
    spans, owners = lifetimes(tasks, order, sizes)
    arena = place(spans if streams is None else branched(spans, owners, tasks, streams))
    places = {
        owner: Place("arena", at)
        for owner, at in zip(owners, arena.offsets, strict=True)
        if owner is not None
    }
    places |= {buffers.numbers[base]: Place("output", index=i) for base, i in buffers.direct.items()}
    places |= {buffers.numbers[value]: Place("input", index=i) for i, value in enumerate(graph.inputs)}
    scratch = {
        span.first: at for owner, span, at in zip(owners, spans, arena.offsets, strict=True) if owner is None
    }
    constants = _Constants()
    memory = _Memory(buffers, places, constants)
    ordered = [jobs[index] for index in order]
    steps = [_steps(ordered, one, memory, scratch) for one in kernels]
    return tuple(
        Program(
            name=graph.name,
            inputs=tuple(Tensor(v.name or f"input{i}", v.type) for i, v in enumerate(graph.inputs)),
            outputs=tuple(Tensor(v.name or f"output{i}", v.type) for i, v in enumerate(graph.outputs)),
            kernels=tuple(one.distinct.values()),
            steps=of_variant,
            constants=tuple(constants.entries),
            arena_bytes=arena.nbytes,
            live_bytes=live_bytes(spans),
            weights_bytes=constants.end,
            turns=(Turn(),) * len(jobs) if streams is None else streams.turns,
        )
        for one, of_variant in zip(kernels, steps, strict=True)
    )


def _loads(jobs: Sequence[Job], variants: Sequence[_Kernels], gpus: Sequence[Gpu]) -> list[Load]:
    """The load of each job: the largest of what it is on the GPUs."""
    loads: list[Load] = []
    for job in jobs:
        of_job = [
            kernels.load(job, gpu) if isinstance(job, Node) else copy_load(job.source.type.nbytes, gpu)
            for kernels, gpu in zip(variants, gpus, strict=True)
        ]
        loads.append(Load(max(one.cycles for one in of_job), max(one.share for one in of_job)))
    return loads


def _steps(
    jobs: Sequence[Job], kernels: _Kernels, memory: _Memory, scratch: Mapping[int, int]
) -> tuple[Step, ...]:
    return tuple(
        _run(job, kernels, memory, scratch.get(step, 0)) if isinstance(job, Node) else memory.copy(job)
        for step, job in enumerate(jobs)
    )


def distinct_kernels(graph: Graph) -> dict[str, Kernel]:
    """The kernels of `graph` by key, in order of first use."""
    kernels: dict[str, Kernel] = {}
    for node in graph.nodes:
        if node.op == "fused":
            kernel = Kernel.of(node)
            kernels.setdefault(kernel.key, kernel)
    return kernels


def _tasks(graph: Graph, jobs: Sequence[Job], buffers: Buffers, variants: Sequence[_Kernels]) -> list[Task]:
    written_by = writers(graph, buffers, jobs)
    tasks: list[Task] = []
    readers: dict[int, list[int]] = {}
    for index, job in enumerate(jobs):
        read = job.inputs if isinstance(job, Node) else (job.source,)
        scratch = max(k.scratch_bytes(job) for k in variants) if isinstance(job, Node) else 0
        reads = tuple(buffers.number(v) for v in read if not buffers.is_constant(v))
        writes = tuple(buffers.number(v) for v in written_values(job))
        overwritten = writes if job in buffers.overwriting else ()
        after = frozenset[int]().union(
            *(written_by.get(v, ()) for v in read), *(readers.get(number, ()) for number in overwritten)
        )
        tasks.append(Task(reads, writes, after, scratch))
        for number in set(reads):
            readers.setdefault(number, []).append(index)
    return tasks


@dataclass
class _Kernels:
    """Kernel nodes with the kernels they call; equal kernels are one."""

    of_node: dict[Node, PlannedKernel]
    distinct: dict[str, PlannedKernel]

    @staticmethod
    def of(graph: Graph, scheduled: ScheduledKernels) -> _Kernels:
        of_node: dict[Node, PlannedKernel] = {}
        distinct: dict[str, PlannedKernel] = {}
        for node in graph.nodes:
            if node.op == "fused":
                kernel = Kernel.of(node)
                of_node[node] = distinct.setdefault(kernel.key, PlannedKernel(kernel, scheduled[kernel.key]))
        return _Kernels(of_node, distinct)

    def in_place(self, node: Node) -> frozenset[int]:
        return self.of_node[node].scheduled.in_place if node in self.of_node else frozenset()

    def scratch_bytes(self, node: Node) -> int:
        return sum(aligned(t.nbytes) for t in self.of_node[node].scheduled.scratch)

    def load(self, node: Node, gpu: Gpu) -> Load:
        planned = self.of_node[node]
        return load_of(planned.kernel, planned.scheduled, gpu)

    def index(self, node: Node) -> int:
        return list(self.distinct).index(self.of_node[node].kernel.key)


@dataclass
class _Constants:
    """The weights blob: equal constants that are packed alike are stored once."""

    entries: list[PlannedConstant] = field(default_factory=list[PlannedConstant])
    end: int = 0
    _stored: dict[tuple[str, str], list[PlannedConstant]] = field(
        default_factory=dict["tuple[str, str]", "list[PlannedConstant]"]
    )

    def place(self, constant: Constant, packing: Packing | None, packed_for: str) -> Place:
        """Where `constant` is. What it is `packed_for` is a name; variants may do that each in its way."""
        key = (_digest(constant), "" if packing is None else packed_for)
        stored = self._stored.setdefault(key, [])
        found = next((e for e in stored if _packed_alike(e, packing)), None)
        if found is None:
            found = PlannedConstant(constant, packing, self.end)
            stored.append(found)
            self.entries.append(found)
            self.end += aligned(found.nbytes)
        return Place("weights", found.offset)


def _packed_alike(entry: PlannedConstant, packing: Packing | None) -> bool:
    """Whether `packing` gives the bytes that `entry` stores: of packings of two schedules, results tell."""
    if entry.packing is None or packing is None or entry.packing is packing:
        return entry.packing is packing
    data = entry.constant.data
    return entry.packing.type == packing.type and (
        entry.packing.pack(data).tobytes() == packing.pack(data).tobytes()
    )


def _digest(constant: Constant) -> str:
    data = np.ascontiguousarray(constant.data)
    return (
        f"{constant.type} "
        + hashlib.blake2b(data.view(np.uint8).reshape(-1).data, digest_size=16).hexdigest()
    )


@dataclass(frozen=True)
class _Memory:
    """Where every value is."""

    buffers: Buffers
    places: Mapping[int, Place]
    constants: _Constants

    def place(self, value: Value) -> Place:
        location = self.buffers.locate(value)
        if isinstance(location.base, Constant):
            return self.constants.place(location.base, None, "") + location.offset
        return self.places[self.buffers.numbers[location.base]] + location.offset

    def copy(self, job: Piece | OutputCopy) -> Copy:
        if isinstance(job, Piece):
            target = self.place(job.whole) + job.offset
        else:
            target = Place("output", index=job.index)
        return Copy(self.place(job.source), target, job.source.type.nbytes, job.source.name)


def _run(node: Node, kernels: _Kernels, memory: _Memory, scratch_offset: int) -> Run:
    planned = kernels.of_node[node]
    arguments: list[Place] = []
    for index, value in enumerate(node.inputs):
        packing = planned.scheduled.packing.get(index)
        if isinstance(value, Constant) and packing is not None:
            packed_for = f"{index} {planned.kernel.key}"
            arguments.append(memory.constants.place(value, packing, packed_for))
        else:
            arguments.append(memory.place(value))
    for type_ in planned.scheduled.scratch:
        arguments.append(Place("arena", scratch_offset))
        scratch_offset += aligned(type_.nbytes)
    arguments += [memory.place(value) for value in node.outputs]
    return Run(kernels.index(node), tuple(arguments), node.name)
