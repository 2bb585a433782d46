"""Schedule tactics of register-tiled kernels: tiles that overlap at the edge, sums kept in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tcomp.errors import ScheduleError
from tcomp.tvm_api import PrimFunc, Schedule, s_tir, structural_map, te, tirx, tvm

Expression = Any


@dataclass(frozen=True)
class Tiles:
    """`count` tiles of `size` that cover an axis of `extent`; the last ones overlap where they must.

    Every tile is whole and lies inside the axis, so that tiled code needs neither padding nor predicates:
    elements that two tiles cover are computed twice, to the same bits. The tiles' stores must therefore
    not destroy what another tile reads: an output must not share memory with an operand.
    """

    extent: int
    size: int
    count: int
    rest: int = 0
    """Size of the last tile where it is a smaller one that does not overlap, else 0."""

    @staticmethod
    def of(extent: int, size: int, multiple: int = 1) -> Tiles:
        """Tiles of `size` (at most `extent`), their count rounded up to `multiple`."""
        size = min(size, extent)
        count = -(-extent // size)
        return Tiles(extent, size, -(-count // multiple) * multiple)

    @staticmethod
    def with_rest(extent: int, size: int) -> Tiles:
        """Tiles of `size`, the last one of what is left of the extent."""
        size = min(size, extent)
        return Tiles(extent, size, -(-extent // size), extent % size)

    @property
    def exact(self) -> bool:
        """Whether no two tiles overlap."""
        return self.count * self.size == self.extent

    def base(self, tile: Expression) -> Expression:
        """The first element of a tile, for an `int` or an expression."""
        if self.exact or self.rest:
            return tile * self.size
        last = self.extent - self.size
        return min(tile * self.size, last) if isinstance(tile, int) else te.min(tile * self.size, last)

    def locate(self, index: Expression) -> tuple[Expression, Expression]:
        """A tile that covers an element, and the element's place in it."""
        tile = index // self.size
        return (tile, index % self.size) if self.exact or self.rest else (tile, index - self.base(tile))


def store_by_tile(
    function: PrimFunc, block: str, tiles: str, point: Callable[..., Sequence[Expression]]
) -> PrimFunc:
    """Let `block` run over the index space of the buffer `tiles` that it reads.

    `point` gives the output element of an index of `tiles`; several indices may share an element if
    their values are equal. With `tiles` of shape [3, 4] over an output of 10, `point` being
    `min(t * 4, 6) + r`:

        for i in 10: out[i] = f(tiles[locate(i)], bias[i])
        ->
        for t, r in 3, 4: out[min(t * 4, 6) + r] = f(tiles[t, r], bias[min(t * 4, 6) + r])

    The loops divide evenly afterwards, whatever the output's extents. `function` is not scheduled yet
    but for inlining. Raises ScheduleError when it has no stage `block`.
    """
    root = function.body.block
    statements = list(root.body.seq)
    at, old = _find(statements, block)
    (buffer,) = [b for b in root.alloc_buffers if b.name == tiles]
    names = [f"tile{i}" for i in range(len(buffer.shape))]
    axes = [
        tirx.IterVar(tvm.ir.Range(0, extent), tirx.Var(f"v_{name}", "int32"), tirx.IterVar.DataPar)
        for name, extent in zip(names, buffer.shape, strict=True)
    ]
    index = [axis.var for axis in axes]
    elements = [tirx.const(e, "int32") if isinstance(e, int) else e for e in point(*index)]
    # A stage of rank 0 has one axis of extent 1.
    elements += [tirx.const(0, "int32")] * (len(old.iter_vars) - len(elements))
    places = list(zip([axis.var for axis in old.iter_vars], elements, strict=True))

    def on_load(load: Any) -> Any:
        return tirx.BufferLoad(buffer, index) if load.source.same_as(buffer) else load

    def on_variable(variable: Any) -> Any:
        return next((place for old_axis, place in places if variable.same_as(old_axis)), variable)

    body = structural_map(old.body, (tvm.ir.TensorLoad, on_load))
    body = structural_map(body, (tirx.Var, on_variable))
    statements[at] = _nest(axes, names, body, block, [*function.params, *root.alloc_buffers])
    sequence = tirx.SeqStmt(statements)
    changed = s_tir.SBlock([], [], [], root.name_hint, sequence, None, root.alloc_buffers)
    return function.with_body(s_tir.SBlockRealize([], True, changed))


def _find(statements: Sequence[Any], name: str) -> tuple[int, Any]:
    for at, statement in enumerate(statements):
        realize = statement
        while isinstance(realize, tirx.For):
            realize = realize.body
        if realize.block.name_hint == name:
            return at, realize.block
    raise ScheduleError(f"no stage `{name}` to run by tiles")


def _nest(axes: Sequence[Any], names: Sequence[str], body: Any, block: str, buffers: Sequence[Any]) -> Any:
    """The loops over `axes` around a block of `body`, with the regions that it reads and writes."""
    bare = s_tir.SBlock(list(axes), [], [], block, body)
    reads, writes, _ = s_tir.analysis.get_sblock_access_region(bare, {b: b for b in buffers})
    whole = s_tir.SBlock(list(axes), reads, writes, block, body)
    loops = [tirx.Var(name, "int32") for name in names]
    nest = s_tir.SBlockRealize(loops, True, whole)
    for loop, axis in reversed(list(zip(loops, axes, strict=True))):
        nest = tirx.For(loop, 0, axis.dom.extent, tirx.ForKind.SERIAL, nest)
    return nest


def vectorize_loop(schedule: Schedule, loop: Any, lanes: int) -> None:
    """`for l in n -> unrolled for v in n / lanes: one vector`; one vector of `n` where it does not divide."""
    extent = int(schedule.get(loop).extent)
    if extent % lanes:
        schedule.vectorize(loop)
        return
    vectors, lane = schedule.split(loop, [extent // lanes, lanes])
    schedule.unroll(vectors)
    schedule.vectorize(lane)


def vectorize_rows(schedule: Schedule, block: Any, lanes: int, unroll_rows: bool = True) -> None:
    """Vectorise the innermost loop of `block` and unroll the one around it."""
    *_, rows, columns = schedule.get_loops(block)
    vectorize_loop(schedule, columns, lanes)
    if unroll_rows:
        schedule.unroll(rows)


def transpose_square(
    load: Callable[[int], Expression], store: Callable[[int, Expression], Any], lanes: int, dtype: str
) -> Any:
    """Transpose `lanes x lanes` elements in registers: `for i, j: out[j][i] = in[i][j]`.

    `load(i)` is row i as a vector, `store(j, vector)` the statement that stores column j. `lanes` is a
    power of two. Eklundh's algorithm: log2(lanes) rounds that exchange blocks of pairs of rows.
    """
    statements: list[Any] = []

    def bind(value: Expression) -> Expression:
        vector = tirx.Var("vector", f"{dtype}x{lanes}")
        statements.append(tirx.Bind(vector, value))
        return vector

    rows = [bind(load(i)) for i in range(lanes)]
    step = 1
    while step < lanes:
        low = [lane + lanes - step if lane & step else lane for lane in range(lanes)]
        high = [lane + lanes if lane & step else lane + step for lane in range(lanes)]
        for i in (i for i in range(lanes) if not i & step):
            pair = [rows[i], rows[i + step]]
            rows[i], rows[i + step] = bind(tirx.Shuffle(pair, low)), bind(tirx.Shuffle(pair, high))
        step *= 2
    return tirx.SeqStmt([*statements, *(store(i, row) for i, row in enumerate(rows))])


def prefetch(buffer: Any, index: Sequence[Expression], to_first_level: bool) -> Any:
    """Ask for the cache line of `buffer[index]`, into the first level or the second; never fails."""
    address = tirx.address_of(tirx.BufferLoad(buffer, list(index)))
    level = [tirx.const(value, "int32") for value in (0, 3 if to_first_level else 2, 1)]
    return tirx.Evaluate(tirx.call_intrin("void", tvm.ir.Op.get("tirx.prefetch"), address, *level))
