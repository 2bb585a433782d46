"""Ways to pack weights in panels of channel blocks: one for each count of blocks that a tile may have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from tcomp.tensor.knobs import Config
from tcomp.tensor.template import Packed, PackedBy


class HasChannelBlocks(Protocol):
    """A tile of `oc_blocks` channel blocks."""

    @property
    def oc_blocks(self) -> int: ...


Tile = TypeVar("Tile", bound=HasChannelBlocks)


def packed_by_blocks(
    tiles: Sequence[Tile],
    default: Callable[[list[Tile]], Config],
    cycles: Callable[[list[Tile]], float],
) -> PackedBy:
    """The panels of each count of blocks among `tiles`, for which the knob `oc_blocks` stands.

    `default` and `cycles` are the config, and the estimated cycles, of the best out of some tiles.
    """

    def packed(blocks: int) -> Packed:
        own = [tile for tile in tiles if tile.oc_blocks == blocks]
        return Packed(default(own), cycles(own), lambda config: config["oc_blocks"] == blocks)

    return {blocks: packed(blocks) for blocks in sorted({tile.oc_blocks for tile in tiles})}
