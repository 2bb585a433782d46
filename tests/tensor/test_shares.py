"""Blocks that share steps of tiles take every step once, and leave pieces where they are added."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tcomp.tensor.gpu.shares import (
    Parts,
    Segment,
    Shares,
    Streams,
    Tiling,
)
from tcomp.tensor.loops import Expression, Statement, constant
from tcomp.tvm_api import tirx, tvm


class _Interpreter:
    """Executes the statements of `segments`, whose bodies are calls of "segment"."""

    def __init__(self) -> None:
        self.values: list[tuple[Expression, int]] = []
        self.found: list[list[int]] = []

    def number(self, expression: Expression) -> int:
        analyzer = tvm.sym.Analyzer()
        for variable, value in self.values:
            analyzer.bind(variable, constant(value))
        return int(analyzer.simplify(expression))

    def run(self, statement: Statement) -> None:
        if isinstance(statement, tirx.SeqStmt):
            for one in statement.seq:
                self.run(one)
        elif isinstance(statement, tirx.Bind):
            self.values.append((statement.var, self.number(statement.value)))
        elif isinstance(statement, tirx.For):
            for i in range(self.number(statement.extent)):
                known = len(self.values)
                self.values.append((statement.loop_var, i))
                self.run(statement.body)
                del self.values[known:]
        elif isinstance(statement, tirx.IfThenElse):
            if self.number(statement.condition):
                self.run(statement.then_case)
        else:
            self.found.append([self.number(argument) for argument in statement.value.args[1:]])


def segments(shares: Shares, block: int) -> list[list[int]]:
    """Tile, first step, steps, whether that is all, piece."""

    def body(segment: Segment) -> Statement:
        whole = constant(segment.whole) if isinstance(segment.whole, bool) else segment.whole
        numbers = (segment.tile, segment.first, segment.steps, whole.astype("int32"), segment.piece)
        return tirx.Evaluate(tirx.call_extern("int32", "segment", *numbers))

    interpreter = _Interpreter()
    interpreter.run(shares.segments(constant(block), body))
    return interpreter.found


def assert_shared(shares: Shares, tiles: int, steps: int) -> None:
    taken: Counter[tuple[int, int]] = Counter()
    pieces: dict[int, tuple[int, int]] = {}
    for block in range(shares.blocks):
        found = segments(shares, block)
        assert 1 <= len(found) <= shares.most_segments
        for tile, first, count, whole, piece in found:
            taken.update((tile, step) for step in range(first, first + count))
            assert bool(whole) == (count == steps)
            if not whole:
                assert piece not in pieces
                assert piece < shares.pieces
                pieces[piece] = tile, first
    assert taken == {(tile, step): 1 for tile in range(tiles) for step in range(steps)}
    assert len(pieces) == shares.kept
    interpreter = _Interpreter()
    for tile in range(shares.divided):
        addends = shares.addends(constant(tile))
        begin, count = (interpreter.number(constant(0) + n) for n in (addends.first, addends.count))
        wanted = sorted((first, piece) for piece, (of, first) in pieces.items() if of == tile)
        added = [begin + i * addends.stride for i in range(count)] if count > 1 else []
        assert added == [piece for _, piece in wanted]
    assert all(tile < shares.divided for tile, _ in pieces.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(1, 2))
def test_streams_take_each_step_once(tiles: int, steps: int, at_once: int, rounds: int) -> None:
    if tiles % at_once and tiles >= (rounds - 1) * at_once:
        assert_shared(Streams.of(tiles, steps, at_once, rounds), tiles, steps)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_parts_take_each_step_once(tiles: int, steps: int, parts: int) -> None:
    assert_shared(Parts(tiles, steps, parts), tiles, steps * parts)


def test_tiles_that_fill_rounds_have_a_block_each() -> None:
    """Of 10 tiles for 4 blocks at once, 2 are left of whole rounds."""
    one, two = Streams.of(10, 6, 4, 1), Streams.of(10, 6, 4, 2)
    assert (one.divided, one.share, one.blocks) == (2, 3, 4 + 8)
    assert (two.divided, two.share, two.blocks) == (6, 9, 4 + 4)
    # As parts: of the two tiles, each in two.
    assert one.kept == 4


def test_tiles_go_down_a_group_and_across() -> None:
    tiling = Tiling((2,), 100, 50, 32, 32, group=2)
    interpreter = _Interpreter()

    def place(number: int) -> tuple[int, ...]:
        (batch,), row, column = tiling.place(constant(number))
        return tuple(interpreter.number(one) for one in (batch, row, column))

    assert [place(i)[1:] for i in range(8)] == [
        (0, 0), (32, 0), (0, 32), (32, 32), (64, 0), (96, 0), (64, 32), (96, 32),
    ]  # fmt: skip
    assert place(8) == (1, 0, 0)
    assert tiling.tiles == 16


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 50))
def test_pieces_are_counted_without_a_look_at_each_tile(divided: int, steps: int, sharers: int) -> None:
    streams = Streams(divided, steps, divided, sharers)
    starts = range(0, divided * steps, steps)
    of_tiles = (len({step // streams.share for step in range(s, s + steps)}) for s in starts)
    assert streams.kept == sum(count for count in of_tiles if count > 1)


def test_pieces_of_very_many_tiles() -> None:
    """More than could be looked at: each of two blocks takes all but half a tile of half of them."""
    tiles = 2 * 10**18 + 1
    assert Streams(tiles, 4, tiles, 2).kept == 2
