"""Rows of outputs in pieces, and the hidden rows that they read, for kernels of several operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.knobs import Config, Ordered
from tcomp.tensor.loops import (
    Expression,
    Statement,
    constant,
    loop,
    parallel,
    sequence,
)
from tcomp.tvm_api import tirx

PIECES = (1, 2, 4, 8, 16)
"""Numbers of pieces to choose from, beside the default."""
MOST_REPEATED_ROWS = 0.04
"""Share of the hidden rows that may be computed twice for the sake of threads that may not exist."""


@dataclass(frozen=True)
class RowPieces:
    """The `rows` of outputs of each image, which are cut into pieces of neighbouring ones.

    Row r reads `reach` rows of the `hidden_rows`, from `r * stride - begin` on, but for those outside. A
    piece computes them as it comes to them, into a ring of `reach` rows, the first ones for itself.
    """

    batch: int
    rows: int
    hidden_rows: int
    reach: int
    stride: int
    begin: int

    @property
    def kept(self) -> int:
        """Hidden rows that two neighbouring rows of outputs both read."""
        return max(self.reach - self.stride, 0)

    def best(self, cores: int) -> int:
        """Into how many pieces each image is cut.

        So many that no core is idle, and more while few rows are computed twice: the machine that runs the
        kernel may have more cores than the target tells.
        """
        pieces = -(-cores // self.batch)
        most = MOST_REPEATED_ROWS * self.hidden_rows
        while 2 * pieces <= self.rows and (2 * pieces - 1) * self.kept <= most:
            pieces *= 2
        return min(pieces, self.rows)

    def repeated(self, cores: int) -> int:
        """Hidden rows that are computed twice."""
        return self.batch * (self.best(cores) - 1) * self.kept

    def knob(self, cores: int) -> Ordered:
        """How many pieces there are."""
        best = self.best(cores)
        return Ordered("pieces", tuple(sorted({p for p in PIECES if p <= self.rows} | {best})), best)

    def nest(
        self,
        config: Config,
        threaded: bool,
        allocations: Sequence[Statement],
        row: Callable[[Expression, Expression, Expression], Statement],
    ) -> Statement:
        """The loops around `row(image, row, number)`, one row of outputs at place `number` of its piece.

        Threads share the pieces, each of which has its own `allocations`.
        """
        tiles = Tiles.with_rest(self.rows, -(-self.rows // int(config["pieces"])))

        def piece(number: Expression) -> Statement:
            image, first = number // tiles.count, tiles.base(number % tiles.count)
            count = tirx.min(tiles.size, tiles.extent - first) if tiles.rest else tiles.size
            return sequence([*allocations, loop(count, lambda i: row(image, first + i, i), "row")])

        return (parallel if threaded else loop)(self.batch * tiles.count, piece, "piece")

    def new_rows(
        self, row: Expression, number: Expression, body: Callable[[Expression], Statement], name: str
    ) -> Statement:
        """`body` of the hidden rows that `row` reads and the row before it in the piece did not."""
        begin = row * self.stride - self.begin
        kept = tirx.if_then_else(number > 0, constant(self.kept), constant(0))
        first, end = tirx.max(begin + kept, 0), tirx.min(begin + self.reach, self.hidden_rows)
        return loop(tirx.max(end - first, 0), lambda i: body(first + i), name)

    def place(self, row: Expression) -> Expression:
        """Where the ring has a hidden row."""
        return tirx.truncmod(row, self.reach)
