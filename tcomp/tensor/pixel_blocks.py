"""Blocks of tiles (`tcomp.tensor.amx`) as pixels by channel blocks, as convolutions by tiles have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcomp.tensor.amx import LANES, ROWS, TILES, TileBlock
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.direct_convolution import PixelTile, pixels_of
from tcomp.tensor.knobs import Config, Ordered

Key = tuple[bool, int, int, int, int]


@dataclass(frozen=True)
class PixelBlock:
    """A block of tiles as pixels by channel blocks."""

    pixels: PixelTile
    block: TileBlock
    padded: bool = False
    """Whether pixels are those of the padded image."""

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


def block_knobs(found: Sequence[PixelBlock], best: PixelBlock) -> tuple[Ordered, ...]:
    """The knobs that choose among `found`, `best` being the default, but for `padded`."""
    names = ("tile_height", "tile_width", "oc_blocks", "tile_rows")
    values = zip(*(choice.key[1:] for choice in found), strict=True)
    return tuple(
        Ordered(name, tuple(sorted(set(own))), default)
        for name, own, default in zip(names, values, best.key[1:], strict=True)
    )


def block_reason(found: Sequence[PixelBlock]) -> Callable[[Config], str | None]:
    """Why a config names none of `found`; None where it does."""
    legal = {choice.key for choice in found}

    def reason(config: Config) -> str | None:
        _, height, width, oc_blocks, rows = key_of(config)
        if key_of(config) not in legal:
            return f"{height}x{width}x{oc_blocks} is no block of tiles of {rows} pixels that fits"
        return None

    return reason
