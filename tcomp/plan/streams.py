"""Steps of a GPU in several streams, where one at a time leaves multiprocessors idle.

List scheduling: whenever something ends, the ready steps with the longest way to the end are begun as long as
all that run find multiprocessors (Graham, Bounds on Multiprocessing Timing Anomalies, 1969). Only what is
ordered by streams and waits may share memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.plan.arena import Lifetime
from tcomp.plan.order import Task
from tcomp.plan.program import Turn
from tcomp.tensor.gpu.load import Load

MOST_STREAMS = 4
WAIT_CYCLES = 1500
"""What waiting for another stream costs."""
_WORTH = 0.95
"""The part of the time in one stream that several must stay below."""


@dataclass(frozen=True)
class Streams:
    """An order of tasks and the turn of each, in that order.

    `before` has for each place in the order the places of those that have ended before it begins, as bits.
    """

    order: tuple[int, ...]
    turns: tuple[Turn, ...]
    before: tuple[int, ...]


@dataclass(frozen=True)
class BranchedLifetime(Lifetime):
    """The lifetime of a buffer that steps `users` touch; `before` have all ended before the first of them.

    Both are places in the order, as bits.
    """

    users: int = 0
    before: int = 0

    def overlaps(self, other: Lifetime) -> bool:
        assert isinstance(other, BranchedLifetime)
        return bool(self.users & ~other.before) and bool(other.users & ~self.before)


def choose_streams(tasks: Sequence[Task], loads: Sequence[Load]) -> Streams | None:
    """Streams for tasks of these loads; None where they promise no less time than one stream."""
    starts, end = _simulate(tasks, loads)
    order = tuple(sorted(starts, key=lambda task: (starts[task], task)))
    streams = _assign(tasks, loads, order, starts)
    chosen = _with_waits(tasks, order, streams)
    waits = sum(len(turn.waits) for turn in chosen.turns)
    one_by_one = sum(load.cycles for load in loads)
    return chosen if end + waits * WAIT_CYCLES < _WORTH * one_by_one else None


def branched(
    spans: Sequence[Lifetime], owners: Sequence[int | None], tasks: Sequence[Task], chosen: Streams
) -> list[Lifetime]:
    """`spans` of buffers, or where an owner is None of scratch, for tasks that run in several streams."""
    users: dict[int, int] = {}
    for place, task in enumerate(chosen.order):
        for buffer in (*tasks[task].reads, *tasks[task].writes):
            users[buffer] = users.get(buffer, 0) | 1 << place
    found: list[Lifetime] = []
    for span, owner in zip(spans, owners, strict=True):
        mine = 1 << span.first if owner is None else users[owner]
        before = -1
        for place, ended in enumerate(chosen.before):
            if mine >> place & 1:
                before &= ended
        found.append(BranchedLifetime(span.nbytes, span.first, span.last, mine, before))
    return found


def _simulate(tasks: Sequence[Task], loads: Sequence[Load]) -> tuple[dict[int, float], float]:
    """When each task begins, and when all have ended."""
    remaining = _remaining(tasks, loads)
    waiting = {index: set(task.after) for index, task in enumerate(tasks)}
    starts: dict[int, float] = {}
    running: dict[int, float] = {}
    now = 0.0
    while waiting or running:
        ready = sorted((i for i, after in waiting.items() if not after), key=lambda i: (-remaining[i], i))
        for index in ready:
            share = sum(loads[i].share for i in running) + loads[index].share
            if not running or (share <= 1 and len(running) < MOST_STREAMS):
                del waiting[index]
                starts[index] = now
                running[index] = now + loads[index].cycles
        now = min(running.values())
        for index in [i for i, end in running.items() if end <= now]:
            del running[index]
            for after in waiting.values():
                after.discard(index)
    return starts, now


def _remaining(tasks: Sequence[Task], loads: Sequence[Load]) -> list[float]:
    """The longest way from the begin of each task to the end of all."""
    remaining = [load.cycles for load in loads]
    for index in reversed(_topological(tasks)):
        for earlier in tasks[index].after:
            remaining[earlier] = max(remaining[earlier], loads[earlier].cycles + remaining[index])
    return remaining


def _topological(tasks: Sequence[Task]) -> list[int]:
    order: list[int] = []
    done: set[int] = set()
    stack = list(reversed(range(len(tasks))))
    while stack:
        index = stack[-1]
        missing = [] if index in done else [i for i in tasks[index].after if i not in done]
        stack += missing
        if not missing:
            stack.pop()
            if index not in done:
                done.add(index)
                order.append(index)
    return order


def _assign(
    tasks: Sequence[Task], loads: Sequence[Load], order: Sequence[int], starts: dict[int, float]
) -> dict[int, int]:
    """The stream of each task: that of a task that it comes after, if free by then, else another free one."""
    last: dict[int, int] = {}
    streams: dict[int, int] = {}
    for index in order:
        free = [
            stream
            for stream in range(MOST_STREAMS)
            if stream not in last or starts[last[stream]] + loads[last[stream]].cycles <= starts[index]
        ]
        following = [stream for stream in free if last.get(stream) in tasks[index].after]
        streams[index] = (following or free)[0]
        last[streams[index]] = index
    return streams


def _with_waits(tasks: Sequence[Task], order: Sequence[int], streams: dict[int, int]) -> Streams:
    """Turns that wait for what is not known to have ended otherwise."""
    places = {index: place for place, index in enumerate(order)}
    last: dict[int, int] = {}
    turns: list[Turn] = []
    before: list[int] = []
    for place, index in enumerate(order):
        stream = streams[index]
        ended = before[last[stream]] | 1 << last[stream] if stream in last else 0
        waits: list[int] = []
        for earlier in sorted((places[i] for i in tasks[index].after), reverse=True):
            if not ended >> earlier & 1:
                waits.append(earlier)
                ended |= before[earlier] | 1 << earlier
        turns.append(Turn(stream, tuple(waits)))
        before.append(ended)
        last[stream] = place
    return Streams(tuple(order), tuple(turns), tuple(before))
