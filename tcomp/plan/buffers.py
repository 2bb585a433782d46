"""Which values share memory: views of others, and values written into a concatenation or over an operand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Union

from tcomp.errors import UnsupportedError
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.op import OPS, Alias


@dataclass(frozen=True)
class Location:
    """`offset` bytes into the memory of `base`."""

    base: Value
    offset: int


@dataclass(frozen=True, eq=False)
class Piece:
    """An operand that must be copied into the value it is a part of, `offset` bytes from its start."""

    source: Value
    whole: Value
    offset: int


@dataclass(frozen=True, eq=False)
class OutputCopy:
    """A model output that no kernel writes: it is an input, a constant, a part of a value, or repeated."""

    source: Value
    index: int


@dataclass
class Buffers:
    """Where the values of a graph lie relative to each other.

    A base is a value with memory of its own. `numbers` counts the bases; `direct` says which of them are
    written straight into which model output; `pieces` are the copies that a node outside kernels needs.
    The output of a node of `overwriting` takes the memory of an operand; all others have read that before.
    """

    numbers: dict[Value, int] = field(default_factory=dict[Value, int])
    direct: dict[Value, int] = field(default_factory=dict[Value, int])
    pieces: dict[Node, list[Piece]] = field(default_factory=dict["Node", "list[Piece]"])
    overwriting: set[Node] = field(default_factory=set["Node"])
    _inside: dict[Value, tuple[Value, int]] = field(default_factory=dict[Value, "tuple[Value, int]"])

    @staticmethod
    def of(graph: Graph, in_place: InPlace) -> Buffers:
        """`in_place` gives the inputs whose memory the output of a kernel's node may take.

        Raises UnsupportedError for a node that is neither a kernel nor an alias.
        """
        buffers = Buffers()
        for node in graph.nodes:
            for alias in aliases(node):
                part, whole = node.inputs[alias.input], node.outputs[alias.output]
                if whole.type.nbytes <= part.type.nbytes:
                    buffers._inside[whole] = (part, alias.offset)
        buffers._write_outputs(graph)
        for node in graph.nodes:
            buffers._assemble(node, graph)
        buffers._overwrite(graph, in_place)
        produced = (v for n in graph.nodes for v in n.outputs)
        bases = (v for v in (*graph.inputs, *produced) if v not in buffers._inside)
        buffers.numbers = {base: number for number, base in enumerate(bases)}
        return buffers

    def locate(self, value: Value) -> Location:
        """The base that `value` lies in, and where."""
        offset = 0
        while value in self._inside:
            value, start = self._inside[value]
            offset += start
        return Location(value, offset)

    def is_constant(self, value: Value) -> bool:
        return isinstance(self.locate(value).base, Constant)

    def number(self, value: Value) -> int:
        """The number of the base that `value` lies in."""
        return self.numbers[self.locate(value).base]

    def _write_outputs(self, graph: Graph) -> None:
        """Let each base that is a whole model output be written there: the first output that it is."""
        for index, value in enumerate(graph.outputs):
            if self._is_whole(value):
                base = self.locate(value).base
                if base in graph.producers:
                    self.direct.setdefault(base, index)

    def _assemble(self, node: Node, graph: Graph) -> None:
        """Place the operands that are parts of `node`'s output inside it, or note that they are copied."""
        for alias in aliases(node):
            part, whole = node.inputs[alias.input], node.outputs[alias.output]
            if whole.type.nbytes <= part.type.nbytes or not part.type.nbytes:
                continue
            base = self.locate(part).base
            if base in graph.producers and base not in self.direct and self._is_whole(part):
                self._inside[base] = (whole, alias.offset)
            else:
                self.pieces.setdefault(node, []).append(Piece(part, whole, alias.offset))

    def _overwrite(self, graph: Graph, in_place: InPlace) -> None:
        """Let outputs take the memory of an operand that no later node reads."""
        last = {self.locate(v).base: node for node in graph.nodes for v in node.inputs}
        kept = {self.locate(v).base for v in (*graph.inputs, *graph.outputs)}
        for node in graph.nodes:
            for index in in_place(node):
                operand, output = node.inputs[index], node.outputs[0]
                base = self.locate(operand).base
                fits = self._is_whole(operand) and base in graph.producers and not {base, output} & kept
                read_once = [self.locate(v).base for v in node.inputs].count(base) == 1
                if fits and read_once and last[base] is node and output not in self._inside:
                    last[base] = last.pop(output, node)
                    self._inside[output] = (operand, 0)
                    self.overwriting.add(node)
                    break

    def _is_whole(self, value: Value) -> bool:
        location = self.locate(value)
        return location.offset == 0 and location.base.type.nbytes == value.type.nbytes


def aliases(node: Node) -> Sequence[Alias]:
    """The aliases of a node outside kernels; none for a kernel.

    Raises UnsupportedError for a node that computes something.
    """
    if node.op == "fused":
        return ()
    found = OPS[node.op].aliases_of(node)
    if not found:
        raise UnsupportedError(f"{node.where} is not in a kernel; run the fuse pass before planning")
    return found


InPlace = Callable[[Node], Iterable[int]]
Job = Union[Node, Piece, OutputCopy]
"""What becomes a step: a kernel or a copy."""


def jobs_of(graph: Graph, buffers: Buffers) -> list[Job]:
    """Kernels and copies in the graph's order."""
    jobs: list[Job] = []
    for node in graph.nodes:
        jobs += [node] if node.op == "fused" else buffers.pieces.get(node, [])
    for index, value in enumerate(graph.outputs):
        if buffers.direct.get(buffers.locate(value).base) != index:
            jobs.append(OutputCopy(value, index))
    return jobs


def written_values(job: Job) -> Sequence[Value]:
    """The values of the graph that `job` writes, wholly or a part of."""
    if isinstance(job, Node):
        return job.outputs
    return (job.whole,) if isinstance(job, Piece) else ()


def writers(graph: Graph, buffers: Buffers, jobs: Sequence[Job]) -> dict[Value, frozenset[int]]:
    """The jobs, by index, that must be done before a value can be read; inputs and constants are absent."""
    index = {job: i for i, job in enumerate(jobs)}
    found: dict[Value, frozenset[int]] = {}
    for node in graph.nodes:
        done = frozenset(
            index[job] for job in ([node] if node.op == "fused" else buffers.pieces.get(node, []))
        )
        if node.op != "fused":
            done = done.union(*(found.get(v, frozenset()) for v in node.inputs))
        found.update(dict.fromkeys(node.outputs, done))
    return found
