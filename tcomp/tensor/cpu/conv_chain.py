"""Chains of three convolutions: pointwise, depthwise, pointwise, as in the inverted residuals of MobileNetV2.

The first one widens few channels to many, so that the tensors between them are the largest of a model. One
kernel for the chain computes them by rows, and they never leave the nearer caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from tcomp.relay.graph import Node
from tcomp.relay.types import numpy_dtype
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.row_pieces import RowPieces

PRODUCTS_A_SAVED_BYTE = 6
"""A chain pays when it saves the traffic of a byte for so many multiplications: docs/design/algorithms.md."""
BYTES_A_REPEATED_PRODUCT = 2
"""What the time of one repeated multiplication is worth in bytes of traffic, with AVX2; less with AVX-512."""


@dataclass(frozen=True)
class ConvChain:
    """The numbers of one chain. `expand` makes the hidden channels, which `depthwise` filters."""

    expand: Convolution
    depthwise: Convolution
    project: Convolution

    @staticmethod
    def of(nodes: Sequence[Node]) -> ConvChain | None:
        """The chain of three static convolutions; None when they are of other kinds."""
        if [n.op for n in nodes] != ["conv2d"] * 3 or not all(
            v.type.is_static and v.dtype == "float32" for n in nodes for v in (*n.inputs, *n.outputs)
        ):
            return None
        chain = ConvChain(*map(Convolution.of, nodes))
        dense = (chain.expand, chain.project)
        is_blocked = all(c.in_block == c.out_block == chain.expand.out_block > 1 for c in chain.stages)
        has_kinds = all(c.is_pointwise and c.groups == 1 for c in dense) and chain.depthwise.is_depthwise
        return chain if is_blocked and has_kinds else None

    @property
    def stages(self) -> tuple[Convolution, ...]:
        return self.expand, self.depthwise, self.project

    @cached_property
    def row_pieces(self) -> RowPieces:
        """How the rows of outputs are cut, and which hidden ones they read."""
        filters = self.depthwise
        reach = (filters.kernel[0] - 1) * filters.dilation[0] + 1
        rows, hidden_rows = self.project.out_size[0], self.expand.out_size[0]
        return RowPieces(
            self.project.batch, rows, hidden_rows, reach, filters.strides[0], filters.pad_begin[0]
        )

    @property
    def products(self) -> int:
        """Multiplications of the whole chain."""
        return sum(
            c.batch * prod((c.out_channels, c.group_inputs, *c.kernel, *c.out_size)) for c in self.stages
        )

    def row_of(self, stage: Convolution) -> Convolution:
        """One row of a pointwise stage."""
        size = (1, stage.out_size[1])
        return replace(stage, batch=1, in_size=size, out_size=size)

    def pays(self, near_bytes: int, cores: int) -> bool:
        """Whether one kernel is worth more than three on cores with a second-level cache of `near_bytes`.

        What of the tensors between the convolutions does not fit there goes out and comes back. Against that
        stand the rows at the borders of pieces, which are computed twice.
        """
        itemsize = numpy_dtype(self.expand.dtype).itemsize
        between = [c.out_blocks * c.out_block * prod(c.out_size) * itemsize for c in self.stages[:2]]
        saved = self.project.batch * sum(2 * max(0, nbytes - near_bytes) for nbytes in between)
        row = self.expand.in_channels * self.expand.out_channels * self.expand.out_size[1]
        saved -= BYTES_A_REPEATED_PRODUCT * self.row_pieces.repeated(cores) * row
        return saved * PRODUCTS_A_SAVED_BYTE >= self.products
