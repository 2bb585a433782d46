"""How the output of a product by tensor cores lies in memory, and what its stores take.

Of each instruction a thread has two neighbouring columns of two rows (`fragments`), so a warp stores 8
columns of 8 rows at a time. The second-level cache takes whole sectors, full or not.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.relay.types import numpy_dtype
from tcomp.tensor.epilogue import output_axes
from tcomp.tensor.gpu.rates import CACHE_BYTES, INSTRUCTIONS
from tcomp.tensor.kernel import Kernel

_PAIR = 2.25
"""Instructions of two sums that are rounded and stored from registers: nvdisasm."""
_SECTOR = 32
_EIGHT = 8
"""Rows, and columns, that a warp stores at a time."""


@dataclass(frozen=True)
class Output:
    """What is stored for the sums of a product: tensors of one shape."""

    itemsizes: tuple[int, ...]
    """Bytes of an element of each tensor."""
    neighbours: int
    """Columns that lie side by side in memory, behind which those of the next row follow."""
    in_lines: bool = False
    """Whether it is one tensor of which whole lines of a tile can be stored by way of shared memory."""

    @property
    def nbytes(self) -> int:
        """For a sum."""
        return sum(self.itemsizes)

    @property
    def sector_bytes(self) -> float:
        """Of the sectors that threads store from registers, for a sum."""
        return sum(self._sector_bytes(itemsize) for itemsize in self.itemsizes)

    def _sector_bytes(self, itemsize: int) -> float:
        beside = min(self.neighbours, _EIGHT)
        distance = self.neighbours * itemsize
        rows_together = max(1, min(_EIGHT, _SECTOR // distance))
        sectors = -(-_EIGHT // rows_together) * max(1.0, beside * itemsize / _SECTOR)
        return _EIGHT / beside * sectors * _SECTOR / _EIGHT**2

    def from_registers(self, sums: int) -> float:
        """Cycles in which a multiprocessor computes and stores so many."""
        return sums / 2 * _PAIR / INSTRUCTIONS + sums * self.sector_bytes / CACHE_BYTES


def output_of(kernel: Kernel, columns: dict[int, int], in_lines: bool = False) -> Output:
    """That of `kernel`; of axis `axis` of its anchor `columns[axis]` are neighbours, of others one is."""
    axes = output_axes(kernel)
    assert axes is not None, "a kernel on tensor cores has elementwise operators and transposes alone"
    itemsizes = tuple(numpy_dtype(value.dtype).itemsize for value in kernel.body.outputs)
    return Output(itemsizes, columns.get(axes[-1], 1), in_lines)
