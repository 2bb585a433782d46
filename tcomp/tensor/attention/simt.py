"""Attention by plain instructions of a GPU: softmax(q k^T scale + mask) v, a tile of query rows a block.

    load the tile of queries into shared memory
    for each tile of keys:
      scores = queries x keys, in registers; the highest of each row by shuffles
      scale the sums and totals so far by exp(old highest - new highest)
      weights = exp(scores - highest), to shared memory; totals += weights
      sums += weights x values
    output = sums / totals, with the epilogue

That is the softmax of Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, in the order
of Dao et al., "FlashAttention", 2022: nothing of size [rows, keys] reaches memory. Keys and values take turns
in one buffer; the values are on their way to registers while the scores are computed, the next keys while the
values are weighted. Eight threads of a warp share a row. Keys beyond the last that a query sees have a score
of minus infinity. A block of causal attention walks no further than one of its queries sees; blocks that walk
furthest come first. Several blocks may share the keys; see `attention.parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, gcd, inf, prod

from tcomp.target.target import Gpu
from tcomp.tensor.alignment import anywhere, vector_lanes
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.attention.operands import own_index
from tcomp.tensor.attention.parts import (
    DTYPE,
    LOWEST,
    KeyParts,
    Pieces,
    exponential,
)
from tcomp.tensor.attention.shape import Blocks, Shape
from tcomp.tensor.gpu.block_tile import (
    ROW_STRIDE,
    STATIC_SHARED_BYTES,
    WARP_COLUMNS,
    WARP_ROWS,
    place_in_warp,
)
from tcomp.tensor.gpu.matrices import Index
from tcomp.tensor.gpu.operand import Operand, Source
from tcomp.tensor.gpu.shared_tiles import (
    GROUP,
    Factors,
    Products,
    SharedTile,
    TileLoader,
    each_sum,
    tile_elements,
)
from tcomp.tensor.gpu.threads import digits, launch, shared, synchronize
from tcomp.tensor.gpu.warps import combine_lanes
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    constant,
    left_to_compiler,
    local,
    loop,
    loops_around,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.template import Scheduled
from tcomp.tvm_api import Tensor, tirx

_ITEMSIZE = 4
_VECTOR = 4
_OTHER_REGISTERS = 40


@dataclass(frozen=True)
class AttentionTile:
    """The knobs, and what they mean for one attention."""

    rows: int
    """Query rows of a block."""
    keys: int
    """Keys of a step."""
    thread_rows: int
    depth: int
    """Of queries and keys, filled up to whole steps of the innermost loop."""
    width: int
    """Columns of the output, filled up to whole groups for each thread."""
    parts: KeyParts

    @staticmethod
    def of(config: Config, shape: Shape) -> AttentionTile:
        rows, keys, thread_rows = (int(config[name]) for name in ("tile_m", "tile_n", "thread_m"))
        columns = WARP_COLUMNS * GROUP
        depth, width = ceil(shape.depth / 8) * 8, ceil(shape.width / columns) * columns
        sums = prod(shape.batch) * shape.rows * shape.width
        parts = KeyParts(int(config.get("split", 1)), ceil(shape.length / keys), sums)
        return AttentionTile(rows, keys, thread_rows, depth, width, parts)

    @property
    def along(self) -> int:
        """Threads along rows."""
        return self.rows // self.thread_rows

    @property
    def threads(self) -> int:
        return self.along * WARP_COLUMNS

    @property
    def thread_keys(self) -> int:
        return self.keys // WARP_COLUMNS

    @property
    def thread_columns(self) -> int:
        return self.width // WARP_COLUMNS

    @property
    def moving_elements(self) -> int:
        """Of the tile of keys or values, whichever is larger."""
        return max(tile_elements(self.keys, self.depth), tile_elements(self.width, self.keys))

    @property
    def shared_bytes(self) -> int:
        queries, weights = tile_elements(self.rows, self.depth), tile_elements(self.rows, self.keys)
        return (queries + weights + self.moving_elements) * _ITEMSIZE

    @property
    def registers(self) -> int:
        """Estimated registers of a thread."""
        scores, sums = self.thread_rows * self.thread_keys, self.thread_rows * self.thread_columns
        staged = self.keys * max(self.depth, self.width) // self.threads
        factors = self.thread_rows + self.thread_columns
        return scores + sums + staged + 2 * factors + 2 * self.thread_rows + _OTHER_REGISTERS

    def reason(self, gpu: Gpu) -> str | None:
        """Why no block can be like this, or None."""
        if self.along % WARP_ROWS:
            return f"{self.along} threads along rows are not whole warps of {WARP_ROWS}x{WARP_COLUMNS}"
        if self.threads > gpu.block_threads:
            return f"a block would have {self.threads} threads; at most {gpu.block_threads} are possible"
        if self.shared_bytes > STATIC_SHARED_BYTES:
            return f"tiles take {self.shared_bytes} bytes of shared memory; there are {STATIC_SHARED_BYTES}"
        most = min(gpu.thread_registers, gpu.registers // self.threads)
        if self.registers > most:
            return f"a thread needs {self.registers} registers; it can have {most}"
        return self.parts.complaint


class SimtAttention:
    """The launch of one kernel."""

    def __init__(self, kernel: Kernel, tile: AttentionTile, gpu: Gpu) -> None:
        assert kernel.anchor is not None
        self.shape, self.tile = Shape.of(kernel.anchor), tile
        along = ceil(self.shape.rows / tile.rows)
        self.blocks = Blocks.of(kernel.anchor, prod(self.shape.batch), along, gpu)
        self.anchored = Anchored(kernel)
        query, key, value, *mask = self.anchored.operands
        self.mask: Tensor | None = mask[0] if mask else None
        shape = self.shape
        self.queries = self._loader(
            self._source(query), shape.rows, shape.depth, tile.rows, tile.depth, "query"
        )
        self.keys = self._loader(self._source(key), shape.length, shape.depth, tile.keys, tile.depth, "key")
        values = self._source(value, transposed=True)
        self.values = self._loader(values, shape.width, shape.length, tile.width, tile.keys, "value")
        self.pieces = (
            Pieces(self.anchored, tile.parts, self.blocks.heads, shape.rows, shape.width)
            if tile.parts.count > 1
            else None
        )

    def _source(self, tensor: Tensor, transposed: bool = False) -> Source:
        """Elements of an operand, whose batch may be broadcast."""

        def element(elements: Elements, batch: Index, x: Expression, k: Expression) -> Expression:
            matrix = (k, x) if transposed else (x, k)
            return elements.element(tensor, [*own_index(tensor, batch, 2), *matrix])

        return element

    def _loader(self, source: Source, extent: int, depth: int, size: int, step: int, name: str) -> TileLoader:
        operand = Operand(self.anchored, source, DTYPE, self.shape.batch, extent, depth).in_vectors(_VECTOR)
        return TileLoader(operand, size, step, self.tile.threads, depth % step != 0, name)

    @cached_property
    def lanes(self) -> int:
        """Columns of one store."""
        one = tirx.const(1, DTYPE)

        def lanes(index: Index) -> int:
            return vector_lanes(lambda c: self.anchored.finish([*index, c], one), self.shape.width, GROUP)

        return anywhere((*self.shape.batch, self.shape.rows), lanes)

    def scheduled(self) -> Scheduled:
        def body(block: Sequence[Expression], thread: Sequence[Expression]) -> Statement:
            part, number = digits(block[0], (parts, self.blocks.count))
            head, rows = self.blocks.place(number)
            own = _Block(self, part, head, rows * self.tile.rows, thread[0])
            return left_to_compiler(own.statement())

        def finish(head: Expression, row: Expression, column: Expression, value: Expression) -> Statement:
            return self.anchored.finish([*digits(head, self.shape.batch), row, column], value)

        parts = self.tile.parts.count
        launches = [launch((parts * self.blocks.count,), (self.tile.threads,), body)]
        if self.pieces is not None:
            launches.append(self.pieces.combined(self.shape, exponential, finish))
        return self.anchored.scheduled(launches)


class _Block:
    """What one thread of one block does."""

    def __init__(
        self, nest: SimtAttention, part: Expression, head: Expression, rows: Expression, thread: Expression
    ) -> None:
        self.nest, self.part, self.head, self.rows, self.thread = nest, part, head, rows, thread
        self.batch: Index = digits(head, nest.shape.batch)
        tile, count = nest.tile, nest.tile.thread_rows
        warp, lane = tirx.floordiv(thread, 32), tirx.floormod(thread, 32)
        row_in_warp, column = place_in_warp(lane)
        row = warp * WARP_ROWS + row_in_warp
        self.is_first_of_row = column == 0
        self.allocations: list[Statement] = []
        zero = constant(0)
        queries = self._shared(tile_elements(tile.rows, tile.depth), "queries")
        moving = self._shared(tile.moving_elements, "keys_or_values")
        weights = self._shared(tile_elements(tile.rows, tile.keys), "weights")
        self.query_tile = SharedTile(queries, zero, tile.rows)
        self.key_tile = SharedTile(moving, zero, tile.keys)
        self.value_tile = SharedTile(moving, zero, tile.width)
        self.weight_tile = SharedTile(weights, zero, tile.rows)
        self.of_queries = Factors(self.query_tile, row, tile.along, count)
        self.of_keys = Factors(self.key_tile, column, WARP_COLUMNS, tile.thread_keys)
        self.of_weights = Factors(self.weight_tile, row, tile.along, count)
        self.of_values = Factors(self.value_tile, column, WARP_COLUMNS, tile.thread_columns)
        self.scores = self._local((count, tile.thread_keys), "scores")
        self.sums = self._local((count, tile.thread_columns), "sums")
        self.tops, self.totals, self.tile_tops = (
            self._local((count,), name) for name in ("tops", "totals", "tile_tops")
        )
        self.of_scores, self.of_sums = Products(self.scores), Products(self.sums)
        self.allocations += [self.of_scores.allocate, self.of_sums.allocate]
        self.allocations += [nest.queries.allocate, nest.keys.allocate, nest.values.allocate]

    def _shared(self, elements: int, name: str) -> Buffer:
        allocate, buffer = shared((elements,), DTYPE, name)
        self.allocations.append(allocate)
        return buffer

    def _local(self, shape: Sequence[int], name: str) -> Buffer:
        allocate, buffer = local(shape, DTYPE, name)
        self.allocations.append(allocate)
        return buffer

    def statement(self) -> Statement:
        nest, thread, zero = self.nest, self.thread, constant(0)
        whole = nest.shape.limit.steps_of(self.rows, nest.tile.rows, nest.tile.keys)
        begin, steps = nest.tile.parts.of_block(self.part, whole)
        known: list[Statement] = []
        if not isinstance(steps, int):
            count = tirx.Var("steps", "int32")
            known.append(tirx.Bind(count, steps))
            steps = count

        def keys(step: Expression) -> Statement:
            return nest.keys.load(thread, self.batch, step * nest.tile.keys, zero)

        def one(number: Expression) -> Statement:
            step, following = begin + number, begin + tirx.min(number + 1, steps - 1)
            return sequence(
                [
                    nest.keys.store(thread, self.key_tile),
                    synchronize(),
                    nest.values.load(thread, self.batch, zero, step),
                    self._clear(self.scores),
                    self.of_scores.begin(self.of_queries, self.of_keys),
                    self.of_scores.add(self.of_queries, self.of_keys, nest.tile.depth),
                    self._weigh(step * nest.tile.keys),
                    synchronize(),
                    nest.values.store(thread, self.value_tile),
                    each_sum(self.scores, self._store_weight),
                    synchronize(),
                    keys(following),
                    self.of_sums.begin(self.of_weights, self.of_values),
                    self.of_sums.add(self.of_weights, self.of_values, nest.tile.keys),
                    synchronize(),
                ]
            )

        lowest, nothing = tirx.const(LOWEST, DTYPE), tirx.const(0, DTYPE)

        def clear(r: Expression) -> Statement:
            return sequence(
                [tirx.BufferStore(self.tops, lowest, [r]), tirx.BufferStore(self.totals, nothing, [r])]
            )

        return sequence(
            [
                *self.allocations,
                *known,
                self._each_row(clear),
                self._clear(self.sums),
                nest.queries.load(thread, self.batch, self.rows, zero),
                nest.queries.store(thread, self.query_tile),
                keys(begin),
                loop(steps, one, "step"),
                self._finish(),
            ]
        )

    def _each_row(self, body: Callable[[Expression], Statement]) -> Statement:
        return unrolled(self.nest.tile.thread_rows, body, "r")

    def _clear(self, buffer: Buffer) -> Statement:
        return each_sum(buffer, lambda r, c: tirx.BufferStore(buffer, tirx.const(0, DTYPE), [r, c]))

    def _weigh(self, first: Expression) -> Statement:
        """Scores of keys from `first` on to weights; what was summed up before, to the new highest score."""
        tile = self.nest.tile

        def score(r: Expression, c: Expression) -> Statement:
            statements, value = self._score(r, first + self.of_keys.at(c), self.scores[r, c])
            return sequence([*statements, tirx.BufferStore(self.scores, value, [r, c])])

        def highest(r: Expression, c: Expression) -> Statement:
            return tirx.BufferStore(self.tile_tops, tirx.max(self.tile_tops[r], self.scores[r, c]), [r])

        def weight(r: Expression, c: Expression) -> list[Statement]:
            value = exponential(self.scores[r, c], self.tops[r])
            return [
                tirx.BufferStore(self.scores, value, [r, c]),
                tirx.BufferStore(self.totals, self.totals[r] + self.scores[r, c], [r]),
            ]

        def row(r: Expression) -> Statement:
            change = tirx.Var("change", DTYPE)

            def rescale(c: Expression) -> Statement:
                return tirx.BufferStore(self.sums, self.sums[r, c] * change, [r, c])

            return sequence(
                [
                    tirx.BufferStore(self.tile_tops, self.tops[r], [r]),
                    unrolled(tile.thread_keys, lambda c: highest(r, c), "c"),
                    *combine_lanes(self.tile_tops, [r], WARP_COLUMNS, tirx.max, ROW_STRIDE),
                    tirx.Bind(change, exponential(self.tops[r], self.tile_tops[r])),
                    tirx.BufferStore(self.tops, self.tile_tops[r], [r]),
                    tirx.BufferStore(self.totals, self.totals[r] * change, [r]),
                    unrolled(tile.thread_columns, rescale, "c"),
                    unrolled(tile.thread_keys, lambda c: sequence(weight(r, c)), "c"),
                ]
            )

        return sequence([each_sum(self.scores, score), *self._hidden(first), self._each_row(row)])

    def _hidden(self, first: Expression) -> list[Statement]:
        """Scores of keys that a query does not see become minus infinity, in tiles that have such keys."""
        limit, keys = self.nest.shape.limit, self.nest.tile.keys
        if not limit.causal and limit.length % keys == 0:
            return []

        def hide(r: Expression, c: Expression) -> Statement:
            seen = first + self.of_keys.at(c) < limit.seen_by(self.rows + self.of_queries.at(r))
            shown = tirx.Select(seen, self.scores[r, c], tirx.const(-inf, DTYPE))
            return tirx.BufferStore(self.scores, shown, [r, c])

        has_some = first + keys > limit.seen_by(self.rows)
        return [tirx.IfThenElse(has_some, each_sum(self.scores, hide), None)]

    def _score(
        self, r: Expression, key: Expression, product: Expression
    ) -> tuple[list[Statement], Expression]:
        """The score of a product of query and key, after the statements it needs."""
        shape, mask = self.nest.shape, self.nest.mask
        value, statements = product * tirx.const(shape.scale, DTYPE), list[Statement]()
        if mask is not None:
            row = tirx.min(self.rows + self.of_queries.at(r), constant(shape.rows - 1))
            index = (*self.batch, row, tirx.min(key, constant(shape.length - 1)))
            elements = self.nest.anchored.elements(loops_around())
            value = shape.masked(value, elements.element(mask, own_index(mask, index, 0)))
            statements = elements.statements
        return statements, value

    def _store_weight(self, r: Expression, c: Expression) -> Statement:
        at = self.weight_tile.at(self.of_keys.at(c), self.of_weights.at(r))
        return tirx.BufferStore(self.weight_tile.buffer, self.scores[r, c], at)

    def _finish(self) -> Statement:
        nest, shape, tile, pieces = self.nest, self.nest.shape, self.nest.tile, self.nest.pieces
        lanes = nest.lanes if pieces is None else gcd(shape.width, GROUP)

        def vector(r: Expression, c: Expression) -> Statement:
            row, column = self.rows + self.of_weights.at(r), self.of_values.at(c)

            def one(lane: Expression) -> Statement:
                if pieces is not None:
                    return pieces.keep_sum(self.part, [self.head, row], column + lane, self.sums[r, c + lane])
                return nest.anchored.finish([*self.batch, row, column + lane], self.sums[r, c + lane])

            inside = [row < shape.rows] if shape.rows % tile.rows else []
            inside += [column < shape.width] if shape.width % tile.width else []
            store = vectorized(lanes, one)
            return tirx.IfThenElse(tirx.all(*inside), store, None) if inside else store

        def row(r: Expression) -> Statement:
            add = combine_lanes(self.totals, [r], WARP_COLUMNS, lambda a, b: a + b, ROW_STRIDE)
            columns = unrolled(tile.thread_columns // lanes, lambda c: vector(r, c * lanes), "c")
            if pieces is not None:
                return sequence([*add, columns, kept(pieces, r)])
            # One division for all sums of a row.
            inverse = tirx.Var("inverse", DTYPE)
            divide = unrolled(tile.thread_columns, lambda c: divided(r, c, inverse), "c")
            return sequence(
                [*add, tirx.Bind(inverse, tirx.const(1, DTYPE) / self.totals[r]), divide, columns]
            )

        def divided(r: Expression, c: Expression, inverse: Expression) -> Statement:
            value = shape.settled(self.sums[r, c] * inverse, self.totals[r] > 0)
            return tirx.BufferStore(self.sums, value, [r, c])

        def kept(pieces: Pieces, r: Expression) -> Statement:
            row = self.rows + self.of_weights.at(r)
            keep = pieces.keep_row(self.part, [self.head, row], self.tops[r], self.totals[r])
            return tirx.IfThenElse(tirx.all(self.is_first_of_row, row < shape.rows), keep, None)

        return self._each_row(row)
