"""Convolutions on GPUs by plain instructions, as products of matrices; see `tensor.gpu.simt_product`."""

from __future__ import annotations

from math import prod

from tcomp.target.target import Target
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.epilogue import output_axes
from tcomp.tensor.gpu.block_tile import BlockTile
from tcomp.tensor.gpu.convolution_matrices import ConvolutionMatrices
from tcomp.tensor.gpu.simt_product import SimtProduct
from tcomp.tensor.gpu.simt_space import Problem, cycles, shares_of, simt_space
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template

OPERATORS = ("conv1d", "conv2d", "conv3d")


class ConvCuda(Template):
    """Plain layout, over 1 to 3 spatial axes, grouped or not; knobs as in `BlockTile`."""

    name = "conv_cuda"
    family = "cuda"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return fits(kernel) and not Convolution.of(kernel.anchors[0]).is_depthwise

    def space(self, kernel: Kernel, target: Target) -> Space:
        return simt_space(_problem(kernel), target)

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        problem = _problem(kernel)
        return lambda config: cycles(problem, BlockTile.of(config), target)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        problem, tile = _problem(kernel), BlockTile.of(config)
        shares = shares_of(problem, tile, target)
        matrices = ConvolutionMatrices.of(kernel, tile.depth, tile.split * tile.steps(problem.depth))
        return SimtProduct(matrices, tile, shares, matrices.table).scheduled()


def fits(kernel: Kernel) -> bool:
    """Whether `kernel` is a convolution in plain layout with elementwise work and transposes after it."""
    if not fits_in_blocks(kernel):
        return False
    conv = Convolution.of(kernel.anchors[0])
    return conv.in_block == conv.out_block == 1


def fits_in_blocks(kernel: Kernel) -> bool:
    """The same in any layout."""
    anchor = kernel.anchor
    if anchor is None or anchor.op not in OPERATORS or output_axes(kernel) is None:
        return False
    return all(prod(v.type.static_shape) > 0 for v in (*anchor.inputs, *anchor.outputs))


def _problem(kernel: Kernel) -> Problem:
    assert kernel.anchor is not None
    conv = Convolution.of(kernel.anchor)
    return Problem(
        (conv.groups,),
        conv.group_outputs,
        conv.batch * prod(conv.out_size),
        prod(conv.kernel) * conv.group_inputs,
        conv.accumulator,
        kernel.nbytes,
        0 if conv.is_pointwise else conv.group_inputs,
    )


TEMPLATES.register(ConvCuda.name, ConvCuda())
