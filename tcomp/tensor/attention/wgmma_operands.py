"""The operands of attention that the copy engine fetches: maps of tensors where they lie, behind slices and
transposes, or where a launch before has brought them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tcomp.target.tile_map import MOST_RANK, TileMap
from tcomp.tensor.alignment import anywhere
from tcomp.tensor.attention.mma_operands import Heads, Load, MmaAttentionOperands, attention_shape
from tcomp.tensor.attention.mma_plan import chunks
from tcomp.tensor.attention.operands import own_index
from tcomp.tensor.attention.plan import AttentionShape
from tcomp.tensor.attention.wgmma_plan import ITEMSIZE, LINE
from tcomp.tensor.gpu.threads import digits
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Buffer,
    Expression,
    Statement,
    constant,
    loops_around,
)
from tcomp.tensor.tensor_cores.mma_plan import CHUNK_BYTES
from tcomp.tvm_api import Tensor, tirx, tvm

_LEAST_RANK = 3


@dataclass(frozen=True)
class _Axis:
    """Along memory: elements from one to the next."""

    extent: int
    stride: int

    def joined(self, inner: _Axis) -> _Axis | None:
        """This and the axis inside as one; None where that is none."""
        if self.extent == 1:
            return inner
        if inner.extent == 1:
            return self
        if self.stride != inner.extent * inner.stride:
            return None
        return _Axis(self.extent * inner.extent, inner.stride)


@dataclass(frozen=True)
class TiledRows:
    """Matrices `[batch, rows, elements]` of which tiles can be copied."""

    buffer: Buffer
    begin: int
    """Elements before the first."""
    elements: int
    rows: _Axis
    batch: tuple[tuple[_Axis, tuple[int, ...]], ...]
    """Other axes, each with the batch axes of the kernel that it is made of."""
    outer: tuple[int, ...]
    """Extents of the batch axes of the kernel."""

    def tiles(self, dtype: str, rows: int) -> TileMap:
        """The map for tiles of 64 elements of so many rows."""
        axes = [self.rows, *(axis for axis, _ in self.batch)]
        axes += [_Axis(1, LINE)] * (_LEAST_RANK - 1 - len(axes))
        # Nothing is read along axes of extent 1; the driver wants a multiple of 16 all the same.
        strides = tuple((a.stride if a.extent > 1 else LINE) * ITEMSIZE for a in axes)
        extents, box = (self.elements, *(a.extent for a in axes)), (LINE, rows, *(1 for _ in axes[1:]))
        return TileMap(dtype, extents, strides, box, begin=self.begin * ITEMSIZE)

    def at(self, batch: Expression, row: Expression, element: int) -> list[Expression]:
        """Where the tile that begins there is in the map."""
        place = digits(batch, self.outer)
        own: list[Expression] = []
        for _, numbers in self.batch:
            index: Expression = constant(0)
            for number in numbers:
                index = index * self.outer[number] + place[number]
            own.append(index)
        own += [constant(0)] * (_LEAST_RANK - 2 - len(own))
        return [constant(element), row, *own]


def tiled_rows(load: Load, heads: Heads, keys: int | None, elements: int) -> TiledRows | None:
    """Where `load(index)` of batch axes, row and element lies, if the copy engine can fetch that.

    Rows are those of `keys` keys, or of the queries of `heads`. None where it is computed, has no multiple of
    16 bytes from one row to the next, or has too many axes.
    """
    extents = [*heads.outer, *heads.inner, heads.queries if keys is None else keys, elements]
    strides = anywhere(extents, lambda index: _strides(load(index), index, extents))
    if strides is None:
        return None
    buffer, begin, steps = strides
    if steps[-1] != 1 and elements > 1:
        return None
    axes = [_Axis(extent, step) for extent, step in zip(extents, steps, strict=True)]
    outer, inner = axes[: len(heads.outer)], axes[len(heads.outer) : -2]
    rows: _Axis | None = axes[-2]
    for axis in reversed(inner if keys is None else []):
        rows = axis.joined(rows) if rows is not None else None
    if rows is None:
        return None
    batch: list[tuple[_Axis, tuple[int, ...]]] = []
    for number, axis in enumerate(outer):
        if axis.extent == 1 or axis.stride == 0:
            continue
        both = batch[-1][0].joined(axis) if batch else None
        if both is not None:
            batch[-1] = (both, (*batch[-1][1], number))
        else:
            batch.append((axis, (number,)))
    along = [rows, *(axis for axis, _ in batch)]
    chunk = CHUNK_BYTES // ITEMSIZE
    if begin % chunk or any(axis.stride % chunk for axis in along if axis.extent > 1):
        return None
    if 1 + len(along) > MOST_RANK:
        return None
    return TiledRows(buffer, begin, elements, rows, tuple(batch), heads.outer)


def _strides(
    element: Expression, variables: Sequence[Any], extents: Sequence[int]
) -> tuple[Buffer, int, list[int]] | None:
    """The buffer of a load, where it begins, and its steps with each variable; None where it is none, or has
    no such steps."""
    if not isinstance(element, tvm.ir.expr.TensorLoad):
        return None
    analyzer = tvm.sym.Analyzer()
    for variable, extent in zip(variables, extents, strict=True):
        analyzer.bind(variable, tvm.ir.Range(0, extent))
    offset: Expression = constant(0)
    for index, extent in zip(element.indices, element.source.shape, strict=True):
        offset = offset * extent + index
    parts = tvm.sym.detect_linear_equation(analyzer.simplify(offset), list(variables))
    found = [analyzer.simplify(part) for part in parts]
    if not found or not all(isinstance(part, tirx.IntImm) for part in found):
        return None
    *steps, begin = map(int, found)
    return (element.source, begin, steps) if all(step >= 0 for step in steps) else None


class TiledAttentionOperands(MmaAttentionOperands):
    """As `MmaAttentionOperands`, rows being fetched by tiles.

    Queries of heads that share keys and values are rows of one matrix where one axis of a map is all of them,
    in memory or after they were moved; else these heads are apart.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        if self._where_it_lies(*self._queries) is None:
            together, self.heads = self.heads, Heads.apart(kernel)
            own = [int(d) for d in self._tensors[0].shape[:-2]]
            are_rows = tuple(own[len(own) - len(together.inner) :]) == together.inner
            if self._where_it_lies(*self._queries) is None and are_rows:
                self.heads = together

    @property
    def shape(self) -> AttentionShape:
        return attention_shape(self.anchor, self.heads)

    @property
    def _queries(self) -> tuple[Tensor, int | None]:
        return self._tensors[0], None

    @property
    def _each(self) -> tuple[tuple[Tensor, int | None], ...]:
        """Operands, and of keys and values how many there are."""
        length = self.of_anchor.length
        return self._queries, *((tensor, length) for tensor in self._tensors[1:])

    @cached_property
    def moved(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor, keys in self._each if self._where_it_lies(tensor, keys) is None)

    def _where_it_lies(self, tensor: Tensor, keys: int | None) -> TiledRows | None:
        def load(index: Sequence[Expression]) -> Expression:
            own = [*own_index(tensor, index[:-1], 1), index[-1]]
            return self.anchored.elements(loops_around()).element(tensor, own)

        return tiled_rows(load, self.heads, keys, int(tensor.shape[-1]))

    def tiled(self) -> tuple[list[Statement], tuple[TiledRows, ...]] | None:
        """Launches, and where queries, keys and values lie after these; None where they cannot be fetched."""
        before: list[Statement] = []
        found: list[TiledRows] = []
        for name, (tensor, keys) in zip(("queries", "keys", "values"), self._each, strict=True):
            extent = int(tensor.shape[-1])
            elements = chunks(extent, self.dtype) if tensor in self.moved else extent
            rows = tiled_rows(self._load(tensor, name, before), self.heads, keys, elements)
            if rows is None:
                return None
            found.append(rows)
        return before, tuple(found)
