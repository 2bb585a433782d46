"""Blocks of tiles (`amx`) as pixels by channel blocks, as convolutions by tiles have them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcomp.target.target import Target
from tcomp.tensor.amx import LANES, ROWS, TILES, TileBlock
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.cpu.channel_panels import packed_by_blocks
from tcomp.tensor.cpu.direct_convolution import PixelTile, pixels_of
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Knob, Ordered, Space
from tcomp.tensor.template import PackedBy, Template

Key = tuple[bool, int, int, int, int]


@dataclass(frozen=True)
class PixelBlock:
    """A block of tiles as pixels by channel blocks."""

    pixels: PixelTile
    block: TileBlock
    padded: bool = False
    """Whether pixels are those of the padded image."""

    @property
    def oc_blocks(self) -> int:
        return self.pixels.oc_blocks

    @property
    def key(self) -> Key:
        """The values of its knobs, by which it is the only one."""
        pixels = self.pixels
        return self.padded, pixels.height, pixels.width, pixels.oc_blocks, self.block.rows


def pixel_blocks(conv: Convolution, pairs: int, padded: int = 0) -> list[PixelBlock]:
    """Blocks of tiles that lie in the output, side by side in a row or in rows below each other, or in that
    many pixels of the `padded` image; a step takes so many `pairs` of the depth."""
    *_, height, width = (1, *pixels_of(conv))
    lanes = min(LANES, conv.out_block)
    if conv.out_block % lanes or pairs > LANES:
        return []
    found: list[PixelBlock] = []
    for oc_blocks in range(1, conv.out_blocks + 1):
        across = oc_blocks * conv.out_block // lanes
        if across >= TILES:
            break
        for rows in range(1, min(ROWS, max(width, padded)) + 1):
            for down in range(1, TILES):
                block = TileBlock(down, across, rows, lanes, pairs)
                if not block.fits:
                    break
                if down * rows <= padded and rows == ROWS:
                    found.append(PixelBlock(PixelTile(1, down * rows, oc_blocks), block, padded=True))
                if rows > width:
                    continue
                if down * rows <= width:
                    found.append(PixelBlock(PixelTile(1, down * rows, oc_blocks), block))
                elif down > 1 and down <= height:
                    found.append(PixelBlock(PixelTile(down, rows, oc_blocks), block))
                if 1 < down <= height and down * rows <= width:
                    found.append(PixelBlock(PixelTile(down, rows, oc_blocks), block))
    return found


def key_of(config: Config) -> Key:
    """The key of the block that `config` names."""
    return (
        bool(config.get("padded", False)),
        int(config["tile_height"]),
        int(config["tile_width"]),
        int(config["oc_blocks"]),
        int(config["tile_rows"]),
    )


@dataclass(frozen=True)
class BlockChoice:
    """Which block of tiles a convolution takes: those that it may, the estimated cycles of all with one,
    and the knobs beside those of blocks, with the defaults that suit one."""

    blocks: Sequence[PixelBlock]
    cycles: Callable[[PixelBlock], float]
    knobs: Callable[[PixelBlock], Sequence[Knob]]

    def least_cycles(self, blocks: Sequence[PixelBlock]) -> float:
        """The estimated cycles with the best of `blocks`."""
        return min(map(self.cycles, blocks))

    def space_of(self, blocks: Sequence[PixelBlock]) -> Space:
        """The configs with one of `blocks`, the best of them by default."""
        best, legal = min(blocks, key=self.cycles), {choice.key for choice in blocks}

        def reason(config: Config) -> str | None:
            _, height, width, oc_blocks, rows = key_of(config)
            if key_of(config) not in legal:
                return f"{height}x{width}x{oc_blocks} is no block of tiles of {rows} pixels that fits"
            return None

        return Space((*_block_knobs(blocks, best), *self.knobs(best)), reason)


class TileConvolution(Template):
    """A template of convolutions in blocks of tiles."""

    @abstractmethod
    def choice(self, kernel: Kernel, target: Target) -> BlockChoice:
        """What blocks there are for a kernel that it accepts."""

    def packings(self, kernel: Kernel, target: Target) -> PackedBy:
        """Panels of as many channel blocks as a block of tiles has."""
        choice = self.choice(kernel, target)
        return packed_by_blocks(choice.blocks, lambda own: choice.space_of(own).default, choice.least_cycles)

    def estimate(self, kernel: Kernel, target: Target) -> float:
        choice = self.choice(kernel, target)
        return choice.least_cycles(choice.blocks)

    def space(self, kernel: Kernel, target: Target) -> Space:
        choice = self.choice(kernel, target)
        return choice.space_of(choice.blocks)


def _block_knobs(found: Sequence[PixelBlock], best: PixelBlock) -> tuple[Ordered, ...]:
    """The knobs that choose among `found`, `best` being the default, but for `padded`."""
    names = ("tile_height", "tile_width", "oc_blocks", "tile_rows")
    values = zip(*(choice.key[1:] for choice in found), strict=True)
    return tuple(
        Ordered(name, tuple(sorted(set(own))), default)
        for name, own, default in zip(names, values, best.key[1:], strict=True)
    )
