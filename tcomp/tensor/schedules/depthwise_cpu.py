"""Depthwise convolution in blocked layout on CPUs: see `tcomp.tensor.cpu.depthwise_rows`."""

from __future__ import annotations

from math import gcd, prod

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.depthwise_rows import DepthwiseRows, pack_depthwise, tile_widths
from tcomp.tensor.cpu.direct_convolution import starts_from_addend
from tcomp.tensor.cpu.primitives import Tiles
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import Expression, Statement, loop, parallel
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import tirx

OPERATORS = ("conv1d", "conv2d", "conv3d")


class DepthwiseCpu(Template):
    """Depthwise convolution in blocked layout; see the module's text."""

    name = "depthwise_cpu"
    priority = 1

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if anchor is None or anchor.op not in OPERATORS or not epilogue_fits(kernel):
            return False
        conv = Convolution.of(anchor)
        weights = placeholder_index(kernel, anchor.inputs[1])
        direct = placeholder_index(kernel, anchor.inputs[0]) is not None and weights in kernel.constant_inputs
        blocked = conv.in_block == conv.out_block > 1
        return conv.is_depthwise and blocked and direct and conv.pad_value == 0

    def space(self, kernel: Kernel, target: Target) -> Space:
        widths, default = tile_widths(_convolution(kernel), target)
        return Space((Ordered("tile_width", widths, default),))

    def estimate(self, kernel: Kernel, target: Target) -> float:
        """Products at the rate of the ports; each vector costs a little more for what is around them."""
        conv = _convolution(kernel)
        vectors = conv.out_block // gcd(conv.out_block, target.lanes(conv.accumulator))
        pixels = conv.batch * conv.out_blocks * vectors * prod(conv.out_size)
        return pixels * (prod(conv.kernel) / target.fma_ports + 1.5)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        """One nest over rows of output pixels; threads share the rows."""
        assert kernel.anchor is not None
        conv = _convolution(kernel)
        weights = placeholder_index(kernel, kernel.anchor.inputs[1])
        assert weights is not None
        with_addends = starts_from_addend(conv, target)
        anchored = Anchored(kernel, {weights: pack_depthwise(conv)}, with_addends=with_addends)
        return anchored.scheduled([_rows(conv, anchored, int(config["tile_width"]), target)])


def _convolution(kernel: Kernel) -> Convolution:
    assert kernel.anchor is not None
    return Convolution.of(kernel.anchor)


def _rows(conv: Convolution, anchored: Anchored, tile_width: int, target: Target) -> Statement:
    """All rows of output pixels."""
    data, weights = (anchored.buffer_of(operand) for operand in anchored.operands)
    rows = DepthwiseRows(
        conv,
        Tiles.of(conv.out_size[-1], tile_width),
        gcd(conv.out_block, target.lanes(conv.accumulator)),
        weights,
        lambda index: tirx.BufferLoad(data, list(index)),
        anchored.finish,
        anchored.start if starts_from_addend(conv, target) else None,
    )
    extents = (conv.batch, conv.out_blocks, *conv.out_size[:-1])

    def row(number: Expression) -> Statement:
        index: list[Expression] = []
        for extent in reversed(extents):
            index.insert(0, number % extent if extent > 1 else 0)
            number = number // extent if extent > 1 else number
        return rows.row(index)

    return (parallel if anchored.threaded else loop)(prod(extents), row, "row")


TEMPLATES.register(DepthwiseCpu.name, DepthwiseCpu())
