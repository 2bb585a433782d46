"""Nests that keep a tile of the output in registers over a reduction.

Convolution-like templates state their loops through them: what one step of the reduction does to one sum,
and what happens with a finished sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, prod
from typing import Any

from tcomp.tensor.cpu.primitives import cut
from tcomp.tensor.cpu.register_tile import (
    Index,
    Point,
    RegisterTile,
    flat,
    positions,
)
from tcomp.tensor.groups import SIDE, ShortSums
from tcomp.tensor.loops import (
    Expression,
    Statement,
    constant,
    local,
    loop,
    parallel,
    sequence,
    unrolled,
)
from tcomp.tvm_api import tirx

Finish = Callable[[Index, Expression], Statement]
"""What is done with the finished sum of the output's element at an index."""
Ends = Callable[[Callable[[Finish], Statement]], Statement]
"""What is done with the finished sums of a tile: `ends(write)`, where `write(finish)` are the statements that
finish each of them."""


@dataclass(frozen=True)
class Factors:
    """Factors of `steps` neighbouring steps of an axis, and all steps of those within it, loaded together.

    `axis` counts from the end, 1 being the last. `load(tile, first, step, sums)` are the statements that do
    so before `step`, the first of them; `steps` divides how many steps of that axis are written out. `update`
    finds them where they were put. `reading(tile, first, step, body)`, if any, is `body`, the reduction from
    `step` on, with what its loads need.
    """

    steps: int
    load: Callable[[RegisterTile, Point, Index, Any], Sequence[Statement]]
    axis: int = 1
    reading: Callable[[RegisterTile, Point, Index, Statement], Statement] | None = None


@dataclass(frozen=True)
class Reduction:
    """What is summed up: `update(sum, point, step)` at every `step` of `extents`, from `initial`.

    Axes whose extent is in `unroll` above 1 have that many steps of their loop written out; `unroll`
    divides the extent. Every sum is kept as `partial_sums` ones, each of every so many steps, so that one
    need not wait for the other; they divide the `unroll` of the last axis, and are for whole plain sums
    alone. With `short`, `update` works on short sums. `ahead(tile, first, step)` are statements that come
    before the steps which begin with `step`, all indices of a step or its first one (the latter not for
    short sums): they fetch what the tile whose first element is `first` reads later. `factors` are for plain
    sums alone; with them, `ahead` comes before as many steps as they are loaded for, not before each.
    With `start(index)`, the sum of the output's element at `index` starts from that instead.
    """

    extents: tuple[int, ...]
    unroll: tuple[int, ...]
    dtype: str
    initial: Expression
    update: Callable[[Expression, Point, Index], Expression]
    short: ShortSums | None = None
    ahead: Callable[[RegisterTile, Point, Index], Sequence[Statement]] | None = None
    partial_sums: int = 1
    factors: Factors | None = None
    weights: Factors | None = None
    start: Callable[[Index], Expression] | None = None

    def start_of(self, point: Point) -> Expression:
        """What the sum of the output's element at `point` starts from."""
        return self.initial if self.start is None else self.start(point.index)


def tile_nest(tile: RegisterTile, reduction: Reduction, finish: Finish, threaded: bool) -> Statement:
    """For every tile: sums start at `initial`, go through the reduction, and end in `finish(index, sum)`."""
    return nest_of_tiles(tile, reduction, lambda write: write(finish), threaded)


def nest_of_tiles(tile: RegisterTile, reduction: Reduction, ends: Ends, threaded: bool) -> Statement:
    """As `tile_nest`, where sums may be finished in several ways."""

    def one_tile(number: Expression) -> Statement:
        first = tile.first(tile.numbers(number))
        return tile.or_rest(first, lambda part: _whole_sums(part, reduction, first, ends))

    return (parallel if threaded else loop)(tile.count, one_tile, "tile")


def _whole_sums(tile: RegisterTile, reduction: Reduction, first: Point, ends: Ends) -> Statement:
    """The whole reduction of one tile."""
    allocation, sums = local([reduction.partial_sums * tile.size], reduction.dtype, "sums")

    def clear(first_sum: int) -> Callable[[Point, Expression], Statement]:
        def store(point: Point, at: Expression) -> Statement:
            value = reduction.initial if first_sum else reduction.start_of(point)
            return tirx.BufferStore(sums, value, [first_sum + at])

        return store

    def write(finish: Finish) -> Statement:
        def end(point: Point, at: Expression) -> Statement:
            return finish(point.index, tirx.BufferLoad(sums, [at]))

        return _finished(tile, first, sums, 0, end)

    if reduction.short is None:
        work = _plain_steps(tile, reduction, first, sums)
    else:
        work = _short_steps(tile, reduction, reduction.short, first, (sums, 0))
    begin = [positions(tile, first, clear(n * tile.size)) for n in range(reduction.partial_sums)]
    gather = _add_partial_sums(tile, first, sums, reduction.partial_sums)
    return sequence([allocation, *begin, work, *gather, ends(write)])


def _finished(
    tile: RegisterTile,
    first: Point,
    sums: Any,
    begin: Expression,
    end: Callable[[Point, Expression], Statement],
) -> Statement:
    """`end(point, place in the tile)` for the sums of a tile in `sums` from `begin`, squares as rows."""
    if tile.squares is None:
        return positions(tile, first, end)
    axis, rows = tile.squares, replace(tile, squares=None)
    loads: list[Statement] = []
    stores: list[Statement] = []
    for *outer, column in product(*(range(n) for n in tile.shape[:-1]), range(0, tile.shape[-1], SIDE**3)):
        pair: list[Expression] = []
        for vector in range(SIDE):
            at = flat(tile.shape, [*outer, column + vector * SIDE**2])
            pair.append(tirx.Var("squares", f"{sums.dtype}x{SIDE**2}"))
            loads.append(tirx.Bind(pair[-1], tirx.BufferLoad(sums, [tirx.Ramp(begin + at, 1, SIDE**2)])))
        for row in range(SIDE):
            place = [n * SIDE + row if a == axis else n for a, n in enumerate(outer)]
            at = flat(rows.shape, [*place, column // SIDE])
            lanes = [v * SIDE**2 + row * SIDE + c for v in range(SIDE) for c in range(SIDE)]
            row_of_both = tirx.Shuffle(pair, [constant(lane) for lane in lanes])
            stores.append(tirx.BufferStore(sums, row_of_both, [tirx.Ramp(begin + at, 1, SIDE**2)]))
    return sequence([*loads, *stores, positions(rows, first, end)])


def _add_partial_sums(tile: RegisterTile, first: Point, sums: Any, count: int) -> list[Statement]:
    """Add the partial sums of each element by halves, into the first."""
    statements: list[Statement] = []
    while count > 1:
        count //= 2
        for n in range(count):
            places = n * tile.size, (n + count) * tile.size

            def add(_: Point, at: Expression, places: tuple[int, int] = places) -> Statement:
                one, other = (tirx.BufferLoad(sums, [at + place]) for place in places)
                return tirx.BufferStore(sums, one + other, [at + places[0]])

            statements.append(positions(tile, first, add))
    return statements


def passes_nest(
    tile: RegisterTile,
    reduction: Reduction,
    finish: Finish,
    threaded: bool,
    kept: int,
    steps: int,
) -> Statement:
    """As `tile_nest`, with the reduction cut into passes of `steps` of its first axis.

    The tiles of all axes after the first `kept` ones of `tile.order` are walked once a pass, with partial
    sums in memory between the passes: what the reduction reads at the kept axes' place (a part of a panel
    of weights) is then small enough to stay in the nearest cache over that walk. `steps` divides the
    extent of the reduction's first axis.
    """
    outer = RegisterTile(tile.axes, tile.order[:kept], tile.inside, tile.lanes)
    inner = RegisterTile(tile.axes, tile.order[kept:], tile.inside, tile.lanes)
    outer_count = prod(tile.axes[a].count for a in outer.order)
    inner_count = prod(tile.axes[a].count for a in inner.order)

    def one_panel(number: Expression) -> Statement:
        own = outer.numbers(number)
        keep, partial = local([inner_count * tile.size], reduction.dtype, "partial")

        def tiles(body: Callable[[RegisterTile, Point, Expression], Statement]) -> Statement:
            """`body(tile, first element, first partial sum)` for each tile of the walk."""

            def one_tile(walked: Expression) -> Statement:
                numbers = [own[a] if a in outer.order else n for a, n in enumerate(inner.numbers(walked))]
                first = tile.first(numbers)
                return tile.or_rest(first, lambda part: body(part, first, walked * tile.size))

            return loop(inner_count, one_tile, "tile")

        def clear(part: RegisterTile, first: Point, begin: Expression) -> Statement:
            return positions(
                part,
                first,
                lambda point, at: tirx.BufferStore(partial, reduction.start_of(point), [begin + at]),
            )

        def advance(done: Expression) -> Callable[[RegisterTile, Point, Expression], Statement]:
            def body(part: RegisterTile, first: Point, begin: Expression) -> Statement:
                one_pass = replace(reduction, extents=(steps, *reduction.extents[1:]))
                if reduction.short is not None:
                    return _short_steps(
                        part, one_pass, reduction.short, first, (partial, begin), done * steps
                    )
                allocation, sums = local([part.size], reduction.dtype, "sums")

                def move(target: Any, source: Any, shifts: tuple[Expression, Expression]) -> Statement:
                    return positions(
                        part,
                        first,
                        lambda _, at: tirx.BufferStore(
                            target, tirx.BufferLoad(source, [at + shifts[1]]), [at + shifts[0]]
                        ),
                    )

                work = _plain_steps(part, one_pass, first, sums, done * steps)
                return sequence(
                    [allocation, move(sums, partial, (0, begin)), work, move(partial, sums, (begin, 0))]
                )

            return body

        def end(part: RegisterTile, first: Point, begin: Expression) -> Statement:
            return _finished(
                part,
                first,
                partial,
                begin,
                lambda point, at: finish(point.index, tirx.BufferLoad(partial, [begin + at])),
            )

        passes = loop(reduction.extents[0] // steps, lambda done: tiles(advance(done)), "pass")
        return sequence([keep, tiles(clear), passes, tiles(end)])

    return (parallel if threaded else loop)(outer_count, one_panel, "panel")


def _update(tile: RegisterTile, reduction: Reduction, first: Point, sums: Any, taken: Index) -> Statement:
    """One step of the reduction for every sum of a tile."""
    begin = taken[-1] % reduction.partial_sums * tile.size if reduction.partial_sums > 1 else 0
    return positions(
        tile,
        first,
        lambda point, at: tirx.BufferStore(
            sums, reduction.update(tirx.BufferLoad(sums, [at + begin]), point, taken), [at + begin]
        ),
    )


def _ahead(tile: RegisterTile, reduction: Reduction, first: Point, taken: Index) -> list[Statement]:
    return [] if reduction.ahead is None else list(reduction.ahead(tile, first, taken))


def _plain_steps(
    tile: RegisterTile, reduction: Reduction, first: Point, sums: Any, begin: Expression = 0
) -> Statement:
    """The steps of a reduction, the first axis from `begin`, on the tile's sums."""

    weights = reduction.weights
    loaded = 1 if weights is None else weights.steps

    def load(steps: int, taken: tuple[Expression, ...]) -> Sequence[Statement]:
        return weights.load(tile, first, taken, sums) if weights is not None and loaded == steps else []

    def nest(taken: tuple[Expression, ...]) -> Statement:
        if len(taken) == len(reduction.extents):
            ahead = [] if reduction.factors is not None else _ahead(tile, reduction, first, taken)
            return sequence([*ahead, *load(1, taken), _update(tile, reduction, first, sums, taken)])
        below = steps_from(taken)
        return sequence([*_ahead(tile, reduction, first, taken), below]) if len(taken) == 1 else below

    def steps_from(taken: tuple[Expression, ...]) -> Statement:
        axis, factors = len(taken), reduction.factors
        if factors is None or axis + factors.axis != len(reduction.extents):
            return _loop_of_steps(reduction, axis, lambda i: nest((*taken, i)))
        steps, inner = factors.steps, [0] * (factors.axis - 1)

        def few(i: Expression) -> Statement:
            before: Sequence[Statement] = load(loaded, (*taken, i * loaded)) if loaded > 1 else ()
            return sequence([*before, unrolled(loaded, lambda u: nest((*taken, i * loaded + u)))])

        def some(i: Expression) -> Statement:
            step = (*taken, i * steps, *inner)
            before = [*_ahead(tile, reduction, first, step), *factors.load(tile, first, step, sums)]
            return sequence([*before, unrolled(steps // loaded, lambda u: few(i * (steps // loaded) + u))])

        written = reduction.unroll[axis] // steps
        count = reduction.extents[axis] // steps // written
        return loop(count, lambda i: unrolled(written, lambda u: some(i * written + u)), "step")

    if not prod(reduction.extents):
        return tirx.Evaluate(0)
    work = _loop_of_steps(reduction, 0, lambda i: nest((begin + i,)))
    for factors in (reduction.factors, weights):
        if factors is not None and factors.reading is not None:
            work = factors.reading(tile, first, (begin, *(0 for _ in reduction.extents[1:])), work)
    return work


def _short_steps(
    tile: RegisterTile,
    reduction: Reduction,
    short: ShortSums,
    first: Point,
    sums: tuple[Any, Expression],
    begin: Expression = 0,
) -> Statement:
    """The steps of a reduction, the first axis from `begin`, on short sums that are added to `sums`.

    `sums` is a buffer and the place of the tile's first sum in it.
    """
    outer, inner = cut(reduction.extents, short.most_steps)
    axis = len(outer) - 1
    written = [1] * axis + [gcd(reduction.unroll[axis], inner[0]), *reduction.unroll[axis + 1 :]]
    buffer, place = sums

    def stretch(taken: Index) -> Statement:
        allocation, partial = local([tile.size], short.dtype, "short_sums")

        def clear(_: Point, at: Expression) -> Statement:
            return tirx.BufferStore(partial, short.initial, [at])

        def step(more: Index) -> Statement:
            inside = [*taken[:-1], taken[-1] * inner[0] + more[0], *more[1:]]
            at = [begin + inside[0], *inside[1:]]
            return sequence(
                [*_ahead(tile, reduction, first, at), _update(tile, reduction, first, partial, at)]
            )

        def widen(_: Point, at: Expression) -> Statement:
            total = tirx.BufferLoad(buffer, [at + place]) + short.widened(tirx.BufferLoad(partial, [at]))
            return tirx.BufferStore(buffer, total, [at + place])

        inside = replace(reduction, extents=inner, unroll=tuple(written[axis:]))
        return sequence(
            [
                allocation,
                positions(tile, first, clear),
                _steps(inside, step),
                positions(tile, first, widen),
            ]
        )

    return _steps(replace(reduction, extents=outer, unroll=(1,) * len(outer)), stretch)


def _steps(reduction: Reduction, step: Callable[[Index], Statement]) -> Statement:
    if not prod(reduction.extents):
        return tirx.Evaluate(0)

    def nest(taken: tuple[Expression, ...]) -> Statement:
        if len(taken) == len(reduction.extents):
            return step(taken)
        return _loop_of_steps(reduction, len(taken), lambda i: nest((*taken, i)))

    return nest(())


def _loop_of_steps(reduction: Reduction, axis: int, body: Callable[[Expression], Statement]) -> Statement:
    extent, written = reduction.extents[axis], reduction.unroll[axis]
    return loop(extent // written, lambda i: unrolled(written, lambda u: body(i * written + u)), "step")
