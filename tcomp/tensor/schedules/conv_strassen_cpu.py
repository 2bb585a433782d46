"""Pointwise convolutions with constant weights by Strassen's algorithm; see `tcomp.tensor.strassen.nest`.

Rows are the pixels of the output, steps the input channels and columns the output channels, these in blocks.
"""

from __future__ import annotations

from math import prod

import numpy as np

from tcomp.relay.types import Array
from tcomp.target.target import Target
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.register_tile import Index
from tcomp.tensor.epilogue import epilogue_fits, placeholder_index
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.loops import Expression
from tcomp.tensor.product import unravel
from tcomp.tensor.schedules.conv2d_cpu import Conv2dDirect
from tcomp.tensor.strassen.plan import DTYPE, Shape
from tcomp.tensor.strassen.template import ConstantProduct, StrassenTemplate
from tcomp.tensor.template import TEMPLATES


class ConvStrassenCpu(StrassenTemplate):
    """See the module's text."""

    name = "conv_strassen_cpu"
    alternative_to = Conv2dDirect.name
    plain = Conv2dDirect()

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        anchor = kernel.anchor
        if (
            anchor is None
            or anchor.op != "conv2d"
            or not anchor.attrs["strassen"]
            or not epilogue_fits(kernel)
        ):
            return False
        conv, lanes = Convolution.of(anchor), target.lanes(DTYPE)
        pointwise = prod(conv.kernel) == conv.groups == 1 and not conv.is_padded
        whole = conv.in_channels % (2 * conv.in_block) == 0 and conv.out_channels % conv.out_block == 0
        blocked = conv.in_block > 1 and conv.out_block % lanes == 0
        constant = placeholder_index(kernel, anchor.inputs[1]) in kernel.constant_inputs
        return (
            conv.dtype == DTYPE and pointwise and whole and blocked and constant and _shape(conv).fits(target)
        )

    def product_of(self, kernel: Kernel) -> ConstantProduct:
        assert kernel.anchor is not None
        conv, index = Convolution.of(kernel.anchor), placeholder_index(kernel, kernel.anchor.inputs[1])
        assert index is not None

        def matrix_of(weights: Array) -> Array:
            return np.transpose(weights.reshape(conv.out_channels, conv.in_channels))

        def pixel_of(row: Expression) -> list[Expression]:
            return unravel(row, (conv.batch, *conv.out_size))

        def data_index(row: Expression, channel: Expression) -> Index:
            n, *pixel = pixel_of(row)
            return conv.place(n, channel, conv.position(pixel, [0] * len(pixel)))

        def at(row: Expression, channel: Expression) -> Index:
            n, *pixel = pixel_of(row)
            return [n, channel // conv.out_block, *pixel, channel % conv.out_block]

        return ConstantProduct(_shape(conv), index, matrix_of, data_index, at)


def _shape(conv: Convolution) -> Shape:
    return Shape(conv.batch * prod(conv.out_size), conv.in_channels, conv.out_channels)


TEMPLATES.register(ConvStrassenCpu.name, ConvStrassenCpu())
