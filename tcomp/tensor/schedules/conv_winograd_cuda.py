"""Winograd convolution on GPUs by plain instructions, in float32; see `tcomp.tensor.winograd.simt`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.gpu.simt_space import shares_of
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.product import constant_right
from tcomp.tensor.schedules.conv_cuda import ConvCuda, fits
from tcomp.tensor.template import (
    TEMPLATES,
    Cycles,
    Packed,
    PackedBy,
    Scheduled,
    Template,
)
from tcomp.tensor.winograd.simt import PixelTiles, SimtWinograd
from tcomp.tensor.winograd.simt_space import (
    WinogradProblem,
    WinogradTiles,
    best_of,
    pixels_of,
    tiles_within_reach,
    winograd_cycles,
    winograd_space,
)

WORTH = 1.1
"""How much faster it must be, by estimate, to be worth more memory for weights: no GPU has timed either."""


class ConvWinogradCuda(Template):
    """3x3 convolutions without strides, ungrouped, with constant weights, in plain layout.

    Knobs: pixels of a tile, `outputs` rows by `columns` (0: as many); those of the products, as in
    `BlockTile`; `threads` of a block that transforms.
    """

    name = "conv_winograd_cuda"
    family = "cuda"
    alternative_to = ConvCuda.name

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        if not fits(kernel) or constant_right(kernel) is None:
            return False
        conv = Convolution.of(kernel.anchors[0])
        return (
            conv.dtype == "float32"
            and conv.kernel == (3, 3)
            and conv.strides == conv.dilation == (1, 1)
            and conv.groups == 1
            and len(tiles_within_reach(conv)) > 0
        )

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Weights transformed for each tile of pixels."""
        problem = WinogradProblem.of(kernel)

        def packed(pixels: tuple[int, int]) -> Packed:
            best = best_of(problem, pixels, target)
            return Packed(best.config, WORTH * winograd_cycles(problem, best, target), _takes(pixels))

        return {pixels: packed(pixels) for pixels in tiles_within_reach(problem.conv)}

    def space(self, kernel: Kernel, target: Target) -> Space:
        return winograd_space(WinogradProblem.of(kernel), target)

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        problem = WinogradProblem.of(kernel)
        return lambda config: winograd_cycles(problem, WinogradTiles.of(config), target)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        return WORTH * super().estimate(kernel, target)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert target.gpu is not None
        problem, tiles = WinogradProblem.of(kernel), WinogradTiles.of(config)
        pixels = PixelTiles(problem.conv, tiles.pixels)
        product = problem.product(pixels, target.gpu)
        shares = shares_of(product, tiles.product, target)
        scheduled = SimtWinograd(kernel, pixels, tiles.product, shares, tiles.threads).scheduled()
        return replace(
            scheduled, flops=2 * prod((*product.batch, product.rows, product.columns, product.depth))
        )


def _takes(pixels: tuple[int, int]) -> Callable[[Config], bool]:
    return lambda config: pixels_of(config) == pixels


TEMPLATES.register(ConvWinogradCuda.name, ConvWinogradCuda())
