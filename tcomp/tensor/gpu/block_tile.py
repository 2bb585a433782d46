"""How a block of threads shares a tile of a product, and what that takes of a multiprocessor.

A warp is 4 threads along rows by 8 along columns. A thread has `thread_rows x thread_columns` sums, in groups
of 4 along each axis: the groups of neighbours lie side by side, so that a warp's vector loads from shared
memory fall into different banks (8 threads read 8 x 16 bytes, all 32 banks) or are one element for several
threads. Threads are numbered by twos along rows: then those whose numbers differ in one bit of the last two
read the same vector, of columns in the last, of rows in the one before, and shared memory serves 16 threads
at a time instead of 8 (so says NVIDIA of compute capability 7; CUTLASS numbers them so, too).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from math import ceil, prod

from tcomp.target.target import Gpu
from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.knobs import Config, KnobValue
from tcomp.tensor.loops import Expression
from tcomp.tvm_api import tirx

WARP_ROWS, WARP_COLUMNS = 4, 8
"""Threads of a warp along each axis."""
PAD = 4
"""Elements after each row of a tile in shared memory, so that a transposing store meets no bank twice."""
ROW_STRIDE = 2
"""What the numbers of neighbours along columns differ by."""
STATIC_SHARED_BYTES = 48 * 1024
_KNOBS = ("tile_m", "tile_n", "tile_k", "thread_m", "thread_n", "stages", "split", "vector", "streamed")
"""What the fields of a tile are called in configs, in order."""
_OTHER_REGISTERS = 36
"""Addresses, counters and what the compiler loads ahead."""


@dataclass(frozen=True)
class BlockTile:
    """A tile of `rows x columns` sums, over `depth` at a time, in `stages` buffers."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    stages: int
    split: int
    """Parts of the whole depth that different blocks sum up."""
    vector: int
    """Most elements of a load from memory."""
    streamed: int = 0
    """Last rounds of the blocks that run at once, by which these share steps; see `Streams`."""

    @staticmethod
    def of(config: Config) -> BlockTile:
        return BlockTile(*(int(config[name]) for name in _KNOBS))

    @property
    def config(self) -> dict[str, KnobValue]:
        """The knobs of this tile: the inverse of `of`."""
        return dict(zip(_KNOBS, astuple(self), strict=True))

    @property
    def threads_along(self) -> tuple[int, int]:
        """Threads along rows and along columns."""
        return self.rows // self.thread_rows, self.columns // self.thread_columns

    @property
    def threads(self) -> int:
        return prod(self.threads_along)

    def shared_bytes(self, itemsize: int) -> int:
        return self.stages * self.depth * (self.rows + self.columns + 2 * PAD) * itemsize

    def registers(self, itemsize: int) -> int:
        """Estimated registers of a thread: sums, two sets of factors, what is on its way to shared memory."""
        sums, factors = self.thread_rows * self.thread_columns, self.thread_rows + self.thread_columns
        staged = -(-self.depth * (self.rows + self.columns) // self.threads)
        return (sums + 2 * factors + staged) * max(1, itemsize // 4) + _OTHER_REGISTERS

    def steps(self, depth: int) -> int:
        """Tiles of the depth that one part has."""
        return ceil(ceil(depth / self.depth) / self.split)

    def reason(self, gpu: Gpu, itemsize: int, depth: int) -> str | None:
        """Why no block can be like this, or None."""
        along_rows, along_columns = self.threads_along
        if along_rows % WARP_ROWS or along_columns % WARP_COLUMNS:
            return f"{along_rows}x{along_columns} threads are not whole warps of {WARP_ROWS}x{WARP_COLUMNS}"
        if self.threads > gpu.block_threads:
            return f"a block would have {self.threads} threads; at most {gpu.block_threads} are possible"
        most = min(STATIC_SHARED_BYTES, gpu.block_shared_bytes)
        if self.shared_bytes(itemsize) > most:
            return f"tiles take {self.shared_bytes(itemsize)} bytes of shared memory; there are {most}"
        registers = min(gpu.thread_registers, gpu.registers // self.threads)
        if self.registers(itemsize) > registers:
            return f"a thread needs {self.registers(itemsize)} registers; it can have {registers}"
        if (self.split - 1) * self.steps(depth) * self.depth >= depth:
            return f"a depth of {depth} has no {self.split} parts of whole tiles"
        return None

    def place(self, thread: Expression) -> tuple[Expression, Expression]:
        """Where a thread stands among those along rows and along columns."""
        warp, lane = tirx.floordiv(thread, 32), tirx.floormod(thread, 32)
        across = self.threads_along[1] // WARP_COLUMNS
        row, column = place_in_warp(lane)
        return (
            tirx.floordiv(warp, across) * WARP_ROWS + row,
            tirx.floormod(warp, across) * WARP_COLUMNS + column,
        )


def place_in_warp(lane: Expression) -> tuple[Expression, Expression]:
    """Where thread `lane` of a warp stands along rows and along columns."""
    far, column, near = digits(lane, (WARP_ROWS // ROW_STRIDE, WARP_COLUMNS, ROW_STRIDE))
    return far * ROW_STRIDE + near, column
