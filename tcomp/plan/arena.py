"""Offsets for buffers with known lifetimes, so that no two live ones overlap.

The problem is NP-hard (dynamic storage allocation); several greedy placements are tried and the smallest
arena is kept. Placing the largest buffers first into the tightest gap is the best single rule in practice
(Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcomp.plan.program import aligned


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `nbytes` that is needed from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """Offsets in bytes, in the order of the lifetimes given, and the size that holds them all."""

    offsets: tuple[int, ...]
    nbytes: int


Priority = Callable[[Lifetime], "tuple[int, ...]"]

_PRIORITIES: tuple[Priority, ...] = (
    lambda b: (-b.nbytes, b.first),
    lambda b: (-b.nbytes * (b.last - b.first + 1), b.first),
    lambda b: (b.first - b.last, -b.nbytes),
    lambda b: (b.first, -b.nbytes),
    lambda b: (-b.last, -b.nbytes),
)


def live_bytes(lifetimes: Sequence[Lifetime]) -> int:
    """The largest sum of buffers alive at one step: a lower bound for every arena."""
    changes: dict[int, int] = {}
    for buffer in lifetimes:
        changes[buffer.first] = changes.get(buffer.first, 0) + aligned(buffer.nbytes)
        changes[buffer.last + 1] = changes.get(buffer.last + 1, 0) - aligned(buffer.nbytes)
    peak = live = 0
    for step in sorted(changes):
        live += changes[step]
        peak = max(peak, live)
    return peak


def place(lifetimes: Sequence[Lifetime]) -> Arena:
    """The smallest arena among those that the placement rules find."""
    bound = live_bytes(lifetimes)
    best: Arena | None = None
    for priority in _PRIORITIES:
        order = sorted(range(len(lifetimes)), key=lambda i: priority(lifetimes[i]))
        for tightest in (True, False):
            arena = _place_in_order(lifetimes, order, tightest)
            if best is None or arena.nbytes < best.nbytes:
                best = arena
            if best.nbytes == bound:
                return best
    return best if best is not None else Arena((), 0)


def _place_in_order(lifetimes: Sequence[Lifetime], order: Sequence[int], tightest: bool) -> Arena:
    """Put each buffer into the tightest (or the lowest) gap among the placed ones that live with it."""
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    total = 0
    for index in order:
        buffer = lifetimes[index]
        size = aligned(buffer.nbytes)
        taken = sorted(
            (offsets[i], offsets[i] + aligned(lifetimes[i].nbytes))
            for i in placed
            if lifetimes[i].overlaps(buffer)
        )
        offsets[index] = _gap(taken, size, tightest)
        placed.append(index)
        total = max(total, offsets[index] + size)
    return Arena(tuple(offsets), total)


def _gap(taken: Sequence[tuple[int, int]], size: int, tightest: bool) -> int:
    """The offset of a free gap of at least `size` bytes between `taken` ranges, or behind them."""
    best: tuple[int, int] | None = None
    end = 0
    for start, stop in taken:
        if start - end >= size and (best is None or start - end < best[0]):
            best = (start - end, end)
            if not tightest:
                break
        end = max(end, stop)
    return end if best is None else best[1]
