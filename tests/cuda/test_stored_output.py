"""What stores of tensor cores' sums are estimated at: sectors, and how they compare."""

from __future__ import annotations

import pytest
from mma_kernels import conv, in_blocks, matmul

from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import TEMPLATES
from tcomp.tensor.tensor_cores.conv_windows import Windows
from tcomp.tensor.tensor_cores.output_tiles import row_output
from tcomp.tensor.tensor_cores.pixel_stores import pixel_output
from tcomp.tensor.tensor_cores.stored_output import Output

ROWS, COLUMNS = 64, 64


@pytest.mark.parametrize(
    ("neighbours", "itemsize"),
    [(64, 2), (64, 4), (64, 1), (8, 2), (16, 1), (4, 4), (16, 2), (32, 4), (1, 2), (1, 4), (1, 1)],
)
def test_sectors_are_those_that_a_warp_stores(neighbours: int, itemsize: int) -> None:
    """Of a tile whose blocks of columns lie one after the other, 8 columns of 8 rows at a time."""

    def address(row: int, column: int) -> int:
        block, within = divmod(column, neighbours)
        return ((block * ROWS + row) * neighbours + within) * itemsize

    sectors = sum(
        len({address(row + i, column + j) // 32 for i in range(8) for j in range(8)})
        for row in range(0, ROWS, 8)
        for column in range(0, COLUMNS, 8)
    )
    assert Output((itemsize,), neighbours).sector_bytes * ROWS * COLUMNS == sectors * 32


@pytest.mark.parametrize(
    ("kernel", "neighbours", "by_engine", "by_threads"),
    [
        (conv((2, 8, 8, 8), (24, 8, 1, 1)), 1, False, False),
        (conv((2, 1, 8, 8, 8), (24, 8, 1, 1), **in_blocks(8, 8)), 8, False, False),
        (conv((2, 1, 8, 8, 8), (24, 8, 1, 1), **in_blocks(8, 16)), 16, False, True),
        (conv((2, 1, 8, 8, 8), (24, 8, 1, 1), **in_blocks(8, 24)), 24, True, True),
        (conv((2, 1, 7, 7, 8), (64, 8, 1, 1), **in_blocks(8, 64)), 64, False, True),
        (conv((2, 1, 8, 8, 32), (64, 32, 1, 1), dtype="int8", **in_blocks(32, 64)), 64, False, False),
    ],
    ids=["plain", "chunks", "two chunks", "one block", "few pixels", "int8"],
)
def test_pixels(kernel: Kernel, neighbours: int, by_engine: bool, by_threads: bool) -> None:
    for engine, in_lines in ((True, by_engine), (False, by_threads)):
        output = pixel_output(kernel, Windows(kernel).conv, engine)
        assert (output.neighbours, output.in_lines) == (neighbours, in_lines)


def test_transposed_rows_lie_apart() -> None:
    assert row_output(matmul((64, 64), (64, 72)), 72) == Output((2,), 72, in_lines=True)
    assert row_output(matmul((64, 64), (64, 72), "transpose"), 72) == Output((2,), 1)


def test_layouts_differ_by_their_stores() -> None:
    """Blocks of a chunk are stored in whole sectors from registers; others by way of shared memory."""
    target = TARGETS["nvidia/a100"]

    def estimate(out: int) -> float:
        kernel = conv((32, 8, 56, 56, 8), (256, 64, 1, 1), **in_blocks(8, out))
        return TEMPLATES["conv_mma_cuda"].estimate(kernel, target)

    def lines(out: int) -> object:
        kernel = conv((32, 8, 56, 56, 8), (256, 64, 1, 1), **in_blocks(8, out))
        space = TEMPLATES["conv_mma_cuda"].space(kernel, target)
        return space.complete(space.default)["lines"]

    assert (lines(8), lines(64)) == (0, 1)
    assert estimate(8) <= estimate(64) < 1.15 * estimate(8)
