"""Numbers about scheduled TIR that mean the same in every template, for the cost model.

They describe the statement that runs most often: the loops around it by kind, what it keeps in registers,
and how many bytes must come from each cache level. What a loop touches is counted per dimension of a
buffer as the product of the extents of the loops in its index, at most the dimension itself, and over all
dimensions at most the iterations of those loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import log2, prod
from typing import Any

from tcomp.relay.types import numpy_dtype
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule
from tcomp.tensor.template import Scheduled
from tcomp.tuner.gpu_features import GPU_NAMES, gpu_features
from tcomp.tuner.task import Task
from tcomp.tvm_api import s_tir, structural_walk, tirx, tvm, walk_result

SERIAL, PARALLEL, VECTORIZED, UNROLLED = range(4)
"""Kinds of loops, in TIR's own numbering."""
WORKING_SET_DEPTHS = 4
_UNBOUNDED = 1 << 40
"""TVM's bounds of what it knows nothing about are larger."""
NAMES = (
    "flops", "flops_per_byte", "iterations", "other_iterations", "loops",
    "serial", "parallel", "vectorized", "unrolled", "innermost_serial",
    "sums", "vector_operands", "broadcast_operands", "register_pressure", "operations_per_load",
    *(f"working_set_{i}" for i in range(WORKING_SET_DEPTHS)),
    "l1_bytes_per_flop", "l2_bytes_per_flop", "l3_bytes_per_flop",
)  # fmt: skip


def names_of(target: Target) -> tuple[str, ...]:
    """The names of features of kernels for `target`."""
    return NAMES if target.gpu is None else (*NAMES, *GPU_NAMES)


@dataclass(frozen=True)
class _Loop:
    extent: int
    kind: int


@dataclass(frozen=True)
class _Buffer:
    name: str
    shape: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class _Access:
    """One read or write of a buffer: which of the statement's loops each dimension's index depends on."""

    buffer: _Buffer
    dimensions: tuple[frozenset[int], ...]

    def touched(self, loops: Sequence[_Loop], inside: Iterable[int]) -> int:
        """Distinct elements over the loops numbered `inside`."""
        moving = set(inside)
        spans = (prod(loops[i].extent for i in used & moving) for used in self.dimensions)
        box = prod(min(span, size) for span, size in zip(spans, self.buffer.shape, strict=True))
        # A fused loop moves in several dimensions at once, and cannot touch more than it has iterations.
        return min(box, prod(loops[i].extent for i in moving & frozenset().union(*self.dimensions)))

    def depends_on(self, numbers: Iterable[int]) -> bool:
        return any(used & set(numbers) for used in self.dimensions)


@dataclass(frozen=True)
class _Statement:
    """A store with the loops around it, outermost first."""

    loops: tuple[_Loop, ...]
    write: _Access
    reads: tuple[_Access, ...]

    @property
    def iterations(self) -> int:
        return prod(loop.extent for loop in self.loops)

    def numbers(self, *kinds: int) -> list[int]:
        return [i for i, loop in enumerate(self.loops) if loop.kind in kinds]

    def extent(self, *kinds: int) -> int:
        return prod(self.loops[i].extent for i in self.numbers(*kinds))

    def bytes_inside(self, depth: int) -> int:
        """Bytes that the loops from number `depth` inwards touch, each buffer once."""
        largest: dict[str, int] = {}
        for access in (self.write, *self.reads):
            nbytes = access.buffer.itemsize * access.touched(self.loops, range(depth, len(self.loops)))
            largest[access.buffer.name] = max(nbytes, largest.get(access.buffer.name, 0))
        return sum(largest.values())


def features_of(task: Task, config: Config) -> tuple[float, ...]:
    """The features of a task's kernel under `config`, named by `names_of` its target. No code is generated.

    Raises ScheduleError for a config that cannot be scheduled.
    """
    return extract(task.kernel, schedule(task.kernel, task.target, config), task.target)


def extract(kernel: Kernel, scheduled: Scheduled, target: Target) -> tuple[float, ...]:
    """The features of a scheduled kernel, named by `names_of(target)`."""
    of_loops = _loop_features(kernel, scheduled, target)
    return of_loops if target.gpu is None else (*of_loops, *gpu_features(scheduled.function, target.gpu))


def _loop_features(kernel: Kernel, scheduled: Scheduled, target: Target) -> tuple[float, ...]:
    statements = _Statements().collect(scheduled.function.body)
    if not statements:
        return (0.0,) * len(NAMES)
    heaviest = max(statements, key=lambda s: s.iterations)
    others = sum(s.iterations for s in statements) - heaviest.iterations
    flops = max(1, kernel.flops)
    serial = heaviest.numbers(SERIAL)
    values = [
        flops,
        flops / max(1, kernel.nbytes),
        heaviest.iterations,
        others / heaviest.iterations,
        len(heaviest.loops),
        heaviest.extent(SERIAL),
        heaviest.extent(PARALLEL),
        heaviest.extent(VECTORIZED),
        heaviest.extent(UNROLLED),
        heaviest.loops[serial[-1]].extent if serial else 0,
        *_register_values(heaviest, target),
        *_working_sets(heaviest, serial),
        *(_traffic(heaviest, size) / flops for size in target.cache_bytes),
    ]
    return tuple(log2(v + 2.0**-20) for v in values)


def _register_values(statement: _Statement, target: Target) -> tuple[float, ...]:
    """Vectors held and loaded by one round of the unrolled loops."""
    in_registers, lanes = statement.numbers(VECTORIZED, UNROLLED), statement.numbers(VECTORIZED)
    width = max(1, statement.extent(VECTORIZED))
    sums = statement.write.touched(statement.loops, in_registers) / width
    reads = [r for r in statement.reads if r.buffer.name != statement.write.buffer.name]
    vectors = sum(r.touched(statement.loops, in_registers) / width for r in reads if r.depends_on(lanes))
    scalars = sum(r.touched(statement.loops, in_registers) for r in reads if not r.depends_on(lanes))
    pressure = (sums + vectors + 1) / target.vector_registers
    operations = statement.extent(UNROLLED) / max(1.0, vectors + scalars)
    return sums, vectors, scalars, pressure, operations


def _working_sets(statement: _Statement, serial: Sequence[int]) -> list[float]:
    """Bytes touched by the innermost one, two, ... serial loops with everything inside them."""
    depths = list(reversed(serial))[:WORKING_SET_DEPTHS]
    depths += [0] * (WORKING_SET_DEPTHS - len(depths))
    return [float(statement.bytes_inside(d)) for d in depths]


def _traffic(statement: _Statement, cache_bytes: int) -> float:
    """Bytes that enter a cache: the largest inner nest that fits is loaded once each time it is entered."""
    for depth in range(len(statement.loops) + 1):
        inside = statement.bytes_inside(depth)
        if inside <= cache_bytes:
            return float(inside * prod(loop.extent for loop in statement.loops[:depth]))
    return float(statement.iterations)


@dataclass
class _Statements:
    """Collects the stores below a statement, with the loops that variables stand for.

    TVM's objects go by their handles: comparing two of its variables builds an expression.
    """

    loops: list[_Loop] = field(default_factory=list[_Loop])
    meaning: dict[int, frozenset[int]] = field(default_factory=dict[int, "frozenset[int]"])
    buffers: dict[int, _Buffer] = field(default_factory=dict[int, "_Buffer"])
    found: list[_Statement] = field(default_factory=list[_Statement])

    def collect(self, root: Any) -> list[_Statement]:
        self._visit(root)
        return self.found

    def _visit(self, node: Any) -> None:
        if isinstance(node, tirx.For):
            self.meaning[_handle(node.loop_var)] = frozenset((len(self.loops),))
            self.loops.append(_Loop(_largest(node.extent), int(node.kind)))
            self._visit(node.body)
            self.loops.pop()
        elif isinstance(node, s_tir.SBlockRealize):
            for variable, value in zip(node.block.iter_vars, node.iter_values, strict=True):
                self.meaning[_handle(variable.var)] = self._loops_in(value)
            self._visit(node.block.body)
        elif isinstance(node, tirx.SeqStmt):
            for part in node.seq:
                self._visit(part)
        elif isinstance(node, tirx.BufferStore):
            self._store(node)
        elif isinstance(node, tirx.AttrStmt) and node.attr_key == "thread_extent":
            self.meaning[_handle(node.node.var)] = frozenset((len(self.loops),))
            self.loops.append(_Loop(int(node.value), PARALLEL))
            self._visit(node.body)
            self.loops.pop()
        elif isinstance(node, tirx.IfThenElse):
            self._visit(node.then_case)
            if node.else_case is not None:
                self._visit(node.else_case)
        elif hasattr(node, "body"):
            self._visit(node.body)

    def _store(self, node: Any) -> None:
        reads = tuple(self._access(load.source, load.indices) for load in _loads(node.value))
        write = self._access(node.buffer, node.indices)
        self.found.append(_Statement(tuple(self.loops), write, reads))

    def _access(self, buffer: Any, indices: Any) -> _Access:
        handle = _handle(buffer)
        if handle not in self.buffers:
            shape = tuple(int(d) if isinstance(d, tirx.IntImm) else 1 for d in buffer.shape)
            self.buffers[handle] = _Buffer(str(buffer.name), shape, numpy_dtype(str(buffer.dtype)).itemsize)
        return _Access(self.buffers[handle], tuple(map(self._loops_in, indices)))

    def _loops_in(self, expression: Any) -> frozenset[int]:
        if isinstance(expression, tirx.Var):
            return self.meaning.get(_handle(expression), _NO_LOOPS)
        return _NO_LOOPS.union(*map(self._loops_in, _operands(expression)))


_NO_LOOPS = frozenset[int]()
_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)
_LOGIC = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE, tirx.And, tirx.Or)
_OPERANDS: dict[type, Callable[[Any], Iterable[Any]]] = {
    **dict.fromkeys(_ARITHMETIC + _LOGIC, lambda node: (node.a, node.b)),
    **dict.fromkeys((tirx.Var, tirx.IntImm, tirx.FloatImm), lambda node: ()),
    tirx.Cast: lambda node: (node.value,),
    tirx.Broadcast: lambda node: (node.value,),
    tirx.Ramp: lambda node: (node.base,),
    tirx.Select: lambda node: (node.condition, node.true_value, node.false_value),
    tvm.ir.Call: lambda node: node.args,
    tvm.ir.TensorLoad: lambda node: node.indices,
}


def _operands(expression: Any) -> Iterable[Any]:
    """What an expression is made of. A walk by TVM takes ten times as long for the usual ones."""
    known = _OPERANDS.get(expression.__class__)
    if known is not None:
        return known(expression)
    parts: list[Any] = []

    def collect(part: Any) -> Any:
        parts.append(part)
        return walk_result.SKIP

    structural_walk(expression, ((tirx.Var, tvm.ir.TensorLoad), collect), order="pre")
    return parts


def _loads(expression: Any) -> Iterator[Any]:
    """All loads from buffers in an expression, those inside of indices first."""
    for operand in _operands(expression):
        yield from _loads(operand)
    if isinstance(expression, tvm.ir.TensorLoad):
        yield expression


def _handle(node: Any) -> int:
    """What tells an object of TVM from all others that are alive."""
    return hash(node)


def _largest(extent: Any) -> int:
    """The most iterations that a loop has: 512 of `min(512, 1280 - i * 512)`."""
    if isinstance(extent, tirx.IntImm):
        return int(extent)
    bound = int(tvm.sym.Analyzer().const_int_bound(extent).max_value)
    return bound if 0 < bound < _UNBOUNDED else 1
