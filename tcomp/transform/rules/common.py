"""What rules of several subjects share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tcomp.relay.dims import Dim
from tcomp.relay.graph import Constant, Value
from tcomp.relay.pattern import is_uniform
from tcomp.relay.rewrite import Build, Match
from tcomp.relay.types import FLOATS, SIGNED_INTEGERS, Array


def keep(name: str) -> Build:
    """Build function: the root becomes what is bound to `name`, broadcast to the root's shape if need be."""

    def build(match: Match) -> Value | None:
        return as_root(match, match[name])

    return build


def as_root(match: Match, value: Value) -> Value | None:
    """`value` with the root's type: itself, or broadcast; None when its element type differs."""
    if value.type == match.type:
        return value
    if value.dtype != match.type.dtype:
        return None
    return match.op("broadcast_to", value, shape=match.type.shape)


def is_float(value: Value) -> bool:
    return value.dtype in FLOATS


def is_signed(value: Value) -> bool:
    """Whether negation stays within the element type."""
    return value.dtype in FLOATS or value.dtype in SIGNED_INTEGERS


def scalar_of(value: Value) -> float | None:
    """The number that every element of a constant is; None for other values."""
    if not isinstance(value, Constant) or value.data.size == 0:
        return None
    first = float(value.data[(0,) * value.data.ndim])
    return first if is_uniform(value.data, first) else None


def fits_without_growth(a: Array, b: Array) -> bool:
    """Whether combining two constants elementwise gives one no larger than the larger of them."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    return prod(shape) <= max(a.size, b.size)


def aligned_groups(source: Sequence[Dim], target: Sequence[Dim]) -> list[tuple[range, range]] | None:
    """Match the axes of two static shapes of equal size into the smallest runs of equal products.

    `[128, 768]` and `[1, 128, 12, 64]` give `[0] ~ [0, 1]` and `[1] ~ [2, 3]`. Axes of extent 1 join the run
    after them, those at the end the last run. None when a shape is symbolic or empty.
    """
    a = [d for d in source if isinstance(d, int) and d > 0]
    b = [d for d in target if isinstance(d, int) and d > 0]
    if len(a) != len(source) or len(b) != len(target) or prod(a) != prod(b):
        return None
    groups: list[tuple[range, range]] = []
    i = j = start_i = start_j = 0
    left = right = 1
    while i < len(a) or j < len(b):
        if i < len(a) and (left <= right or j == len(b)):
            left, i = left * a[i], i + 1
        else:
            right, j = right * b[j], j + 1
        if left == right > 1:
            groups.append((range(start_i, i), range(start_j, j)))
            start_i, start_j, left, right = i, j, 1, 1
    if start_i < i or start_j < j:
        start_i, start_j = (groups[-1][0].start, groups[-1][1].start) if groups else (0, 0)
        groups[-1:] = [(range(start_i, i), range(start_j, j))]
    return groups


def broadcast_through(
    shape: Sequence[Dim], target: Sequence[Dim], source: Sequence[Dim]
) -> tuple[Dim, ...] | None:
    """The shape that an operand broadcast against `target` takes when the other is viewed as `source`.

    `[1, 12, 1, 64]` against `[1, 12, 128, 64]` viewed as `[12, 128, 64]` becomes `[12, 1, 64]`. None when the
    operand is neither constant nor complete along a run of joined axes.
    """
    groups = aligned_groups(source, target)
    if groups is None or len(shape) > len(target):
        return None
    padded = [1] * (len(target) - len(shape)) + list(shape)
    result: list[Dim] = []
    for from_axes, to_axes in groups:
        if all(padded[j] == target[j] for j in to_axes):
            result += [source[i] for i in from_axes]
        elif all(padded[j] == 1 for j in to_axes):
            result += [1 for _ in from_axes]
        else:
            return None
    return tuple(result)
