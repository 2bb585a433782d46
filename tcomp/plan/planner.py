"""From an optimized graph and its scheduled kernels to a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tcomp.plan.arena import live_bytes, place
from tcomp.plan.buffers import Buffers, Job, OutputCopy, Piece, jobs_of, writers, written_values
from tcomp.plan.constants import Constants, DevicePackings
from tcomp.plan.order import Task, choose_order, lifetimes
from tcomp.plan.program import (
    Copy,
    Place,
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
from tcomp.tensor.gpu.load import Load, copy_load, load_of
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
    On `gpus`, of the variants, steps that leave room on all of them run beside others, and constants that
    packing enlarges are packed there.
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
    places = _places(graph, buffers, dict(zip(owners, arena.offsets, strict=True)))
    scratch = {
        span.first: at for owner, span, at in zip(owners, spans, arena.offsets, strict=True) if owner is None
    }
    constants = Constants()
    packings = [DevicePackings.of(one.packed_constants() if gpus else ()) for one in kernels]
    ordered = [jobs[index] for index in order]
    steps = [
        _steps(ordered, one, _Memory(buffers, places, constants, packing), scratch)
        for one, packing in zip(kernels, packings, strict=True)
    ]
    sources = Constants("sources", constants.end)
    packed = [packing.from_weights(constants, sources) for packing in packings]
    return tuple(
        Program(
            name=graph.name,
            inputs=tuple(Tensor(v.name or f"input{i}", v.type) for i, v in enumerate(graph.inputs)),
            outputs=tuple(Tensor(n, v.type) for n, v in zip(graph.output_names, graph.outputs, strict=True)),
            kernels=tuple(one.distinct.values()),
            steps=of_variant,
            constants=(*constants.entries, *sources.entries),
            arena_bytes=arena.nbytes,
            live_bytes=live_bytes(spans),
            weights_bytes=sources.end,
            source_bytes=sources.end - sources.begin,
            packed=of_device,
            packed_bytes=packing.end,
            turns=(Turn(),) * len(jobs) if streams is None else streams.turns,
        )
        for one, of_variant, of_device, packing in zip(kernels, steps, packed, packings, strict=True)
    )


def _places(graph: Graph, buffers: Buffers, offsets: Mapping[int | None, int]) -> dict[int, Place]:
    """Where each buffer is, by number; `offsets` are those in the arena, None standing for scratch."""
    places = {owner: Place("arena", at) for owner, at in offsets.items() if owner is not None}
    places |= {buffers.numbers[base]: Place("output", index=i) for base, i in buffers.direct.items()}
    return places | {buffers.numbers[value]: Place("input", index=i) for i, value in enumerate(graph.inputs)}


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

    def packed_constants(self) -> Iterator[tuple[Constant, Packing]]:
        """Every constant that a kernel wants packed, as often as one does."""
        for node, planned in self.of_node.items():
            for index, packing in planned.scheduled.packing.items():
                value = node.inputs[index]
                if isinstance(value, Constant):
                    yield value, packing

    def index(self, node: Node) -> int:
        return list(self.distinct).index(self.of_node[node].kernel.key)


@dataclass(frozen=True)
class _Memory:
    """Where every value is."""

    buffers: Buffers
    places: Mapping[int, Place]
    constants: Constants
    packings: DevicePackings

    def place(self, value: Value) -> Place:
        location = self.buffers.locate(value)
        if isinstance(location.base, Constant):
            return self.constants.place(location.base) + location.offset
        return self.places[self.buffers.numbers[location.base]] + location.offset

    def packed(self, constant: Constant, packing: Packing, packed_for: str) -> Place:
        """Where a constant is as a kernel wants it."""
        if self.packings.takes(constant, packing):
            return self.packings.place(constant, packing, packed_for)
        return self.constants.place(constant, packing, packed_for)

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
            arguments.append(memory.packed(value, packing, packed_for))
        else:
            arguments.append(memory.place(value))
    for type_ in planned.scheduled.scratch:
        arguments.append(Place("arena", scratch_offset))
        scratch_offset += aligned(type_.nbytes)
    arguments += [memory.place(value) for value in node.outputs]
    return Run(kernels.index(node), tuple(arguments), node.name)
