"""Kernels on tensor cores around the launch that multiplies.

Operands that are not in memory as it needs them, sums of parts of the depth, what follows the product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

from tcomp.relay.op import OPS, FusionKind
from tcomp.relay.types import FLOAT8, Array, rounded_to_tf32
from tcomp.target.target import Target
from tcomp.tensor.alignment import VECTOR_TYPES
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import accumulator_dtype
from tcomp.tensor.gpu.shares import Shares
from tcomp.tensor.gpu.threads import digits, spread
from tcomp.tensor.gpu.totals import Totals
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    call,
    constant,
    local,
    unrolled,
)
from tcomp.tensor.loops import sequence as in_order
from tcomp.tensor.product import factor_dtype
from tcomp.tensor.template import Scheduled
from tcomp.tensor.tensor_cores.mma_plan import CAPABILITIES, TiledProduct, chunk_elements
from tcomp.tensor.tensor_cores.wgmma_plan import ARCH as WGMMA_ARCH
from tcomp.tvm_api import tirx

Index = Callable[[Expression, Expression, Expression], Sequence[Any]]
_THREADS = 256


def multiplies(kernel: Kernel, target: Target) -> bool:
    """Whether tensor cores of `target` multiply what the anchor of `kernel` does."""
    anchor, gpu = kernel.anchor, target.gpu
    if anchor is None or gpu is None:
        return False
    dtype = factor_dtype(kernel)
    there = dtype in gpu.flops and gpu.capability >= CAPABILITIES.get(dtype, inf)
    return there and all(prod(v.type.static_shape) > 0 for v in anchor.inputs)


def multiplies_by_warps(kernel: Kernel, target: Target) -> bool:
    """Whether `mma.sync` has the type. Of float8 ptxas 13.0 makes twelve conversions to float16 on sm_90a."""
    return target.gpu is None or target.gpu.arch != WGMMA_ARCH or factor_dtype(kernel) not in FLOAT8


def as_factors(kernel: Kernel, array: Array) -> Array:
    """A constant operand as the anchor of `kernel` multiplies it."""
    return rounded_to_tf32(array) if factor_dtype(kernel) == "tf32" else array


def materialize(
    anchored: Anchored,
    shape: Sequence[int],
    dtype: str,
    name: str,
    chunk_axis: int,
    element: Callable[[Elements, list[Expression]], Expression],
) -> tuple[Statement, Buffer]:
    """A launch that fills a scratch buffer of `shape` with `element(elements, index)`.

    Each thread makes a chunk of the last axis. Chunks are counted before axis `chunk_axis` of `shape`: the
    axes behind it are those along which threads of a warp read neighbours.
    """
    buffer = anchored.add_scratch(shape, dtype, name)
    size = chunk_elements(dtype)
    *outer, last = shape
    order = [*outer[:chunk_axis], last // size, *outer[chunk_axis:]]

    def fill(number: Expression) -> Statement:
        index = digits(number, order)
        first = index.pop(chunk_axis) * size
        allocate, chunk = local((size,), dtype, "chunk")

        def one(i: Expression) -> Statement:
            elements = anchored.elements()
            value = element(elements, [*index, first + i])
            return in_order([*elements.statements, tirx.BufferStore(chunk, value, [i])])

        place = tirx.address_of(tirx.BufferLoad(buffer, [*index, first]))
        store = call("tcomp_store_chunk", place, tirx.address_of(chunk[0]))
        return in_order([allocate, unrolled(size, one), store])

    return spread(prod(order), _THREADS, fill), buffer


def padded(
    position: Expression, extent: int, value: Callable[[Expression], Expression], dtype: str
) -> Expression:
    """`value(position)`, zero from `extent` on."""
    inside = value(tirx.min(position, constant(extent - 1)))
    return tirx.Select(position < extent, inside, tirx.const(0, dtype))


@dataclass(frozen=True)
class _Sums:
    """The sums of a plan, which the anchor's output has where `index(batch, row, column)` says."""

    anchored: Anchored
    plan: TiledProduct
    index: Index

    @property
    def batch(self) -> tuple[int, ...]:
        return (self.plan.batch,)

    @property
    def rows(self) -> int:
        return self.plan.rows

    @property
    def columns(self) -> int:
        return self.plan.columns

    @property
    def accumulator(self) -> str:
        return accumulator_dtype(self.plan.dtype)

    def store(
        self, batch: Sequence[Any], row: Expression, column: Expression, value: Expression
    ) -> Statement:
        return self.anchored.finish(self.index(batch[0], row, column), value)


def schedule_mma(
    anchored: Anchored,
    plan: TiledProduct,
    shares: Shares,
    before: Sequence[Statement],
    nest: Callable[[Totals], Statement],
    index: Index,
    vector: int,
) -> Scheduled:
    """The launches of a product; `index(batch, row, column)` is where the anchor's output has a sum.

    `vector` sums of neighbouring columns lie side by side in every output. `nest(totals)` is the launch that
    multiplies, and leaves the sums of each block's share.
    """
    totals = Totals(_Sums(anchored, plan, index), plan.tiling, shares, vector)
    return anchored.scheduled([*before, nest(totals), *totals.launches()])


def stored_in_vectors(kernel: Kernel, columns: int) -> bool:
    """Whether two neighbours of `columns` side by side in the output are computed as one vector."""
    others = [n for n in kernel.body.nodes if n is not kernel.anchor]
    values = [v for n in others for v in (*n.inputs, *n.outputs)] + list(kernel.body.outputs)
    types = {v.dtype for v in values}
    elementwise = all(OPS[n.op].kind is FusionKind.ELEMENTWISE for n in others)
    return columns % 2 == 0 and elementwise and types <= set(VECTOR_TYPES)
