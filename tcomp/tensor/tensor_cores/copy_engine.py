"""Tiles of tensors that a GPU's copy engine brings to shared memory: the maps that a launch has of them."""

from __future__ import annotations

from typing import Any

from tcomp.target.tile_map import TileMap, Walk
from tcomp.tensor.loops import Buffer, Expression, Statement
from tcomp.tvm_api import tirx, tvm

TILES = "tcomp.tiles"
"""The attribute of a launch that says what a variable of it maps."""
CLUSTER = "tcomp.cluster"
"""The attribute of a launch that says how many blocks are a cluster."""


def map_variable(name: str) -> Any:
    """A parameter of a launch that is a map; `address_of` it is what instructions take."""
    return tirx.Var(name, tvm.ir.PointerType(tirx.TensorMapType()))


def address_of_map(variable: Any) -> Expression:
    return tirx.address_of(variable)


def with_map(variable: Any, buffer: Buffer, tiles: TileMap, launch: Statement) -> Statement:
    """`launch` with a further parameter, `variable`: the map `tiles` of `buffer`, which the kernel has."""
    walk = () if tiles.walk is None else (tiles.walk.lower, tiles.walk.upper, tiles.walk.steps)
    shapes = (tiles.extents, tiles.strides, tiles.box, *walk)
    facts = [variable, buffer, tiles.dtype, tiles.swizzle, tiles.begin, *map(list, shapes)]
    return tirx.AttrStmt(facts, TILES, tirx.const(0, "int32"), launch)


def in_clusters(blocks: int, launch: Statement) -> Statement:
    """`launch`, so many neighbouring blocks of which run at the same time and reach each other's memory."""
    return tirx.AttrStmt(blocks, CLUSTER, tirx.const(0, "int32"), launch) if blocks > 1 else launch


def tile_map_of(statement: Statement) -> tuple[Any, Buffer, TileMap]:
    """What was given to `with_map`."""
    variable, buffer, dtype, swizzle, begin, *shapes = statement.node
    extents, strides, box, *walk = (tuple(int(i) for i in shape) for shape in shapes)
    steps = Walk(*walk) if walk else None
    return variable, buffer, TileMap(str(dtype), extents, strides, box, int(swizzle), int(begin), steps)
