"""The order in which kernels run: any topological order is correct, some need less memory at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tcomp.plan.arena import Lifetime, live_bytes


@dataclass(frozen=True)
class Task:
    """A step for ordering.

    `reads` and `writes` are buffers by number; several tasks may write parts of one buffer. `after` are the
    tasks that must run before; `scratch` bytes are needed only while it runs.
    """

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    after: frozenset[int] = frozenset()
    scratch: int = 0


@dataclass(frozen=True)
class Ordering:
    """An order of tasks and the bytes alive at its worst step."""

    order: tuple[int, ...]
    live_bytes: int


def choose_order(tasks: Sequence[Task], sizes: Mapping[int, int]) -> Ordering:
    """The order, given or greedy, with the least memory alive at its worst step.

    `sizes` are the bytes of those buffers that lie in the arena; others cost nothing.
    """
    given = tuple(range(len(tasks)))
    candidates = [given, _greedy(tasks, sizes, _frees_most), _greedy(tasks, sizes, _grows_least)]
    orderings = [Ordering(order, live_bytes(lifetimes(tasks, order, sizes)[0])) for order in candidates]
    return min(orderings, key=lambda ordering: ordering.live_bytes)


def lifetimes(
    tasks: Sequence[Task], order: Sequence[int], sizes: Mapping[int, int]
) -> tuple[list[Lifetime], list[int | None]]:
    """Lifetimes of the arena's buffers in `order`, and which buffer each is; None is a step's scratch."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    found: list[Lifetime] = []
    owners: list[int | None] = []
    for step, index in enumerate(order):
        task = tasks[index]
        for buffer in (*task.reads, *task.writes):
            if buffer in sizes:
                first.setdefault(buffer, step)
                last[buffer] = step
        if task.scratch:
            found.append(Lifetime(task.scratch, step, step))
            owners.append(None)
    for buffer, step in first.items():
        found.append(Lifetime(sizes[buffer], step, last[buffer]))
        owners.append(buffer)
    return found, owners


Cost = Callable[[int, int], "tuple[int, ...]"]


def _frees_most(written: int, freed: int) -> tuple[int, ...]:
    return (written - freed,)


def _grows_least(written: int, freed: int) -> tuple[int, ...]:
    return (max(0, written - freed), written, -freed)


def _greedy(tasks: Sequence[Task], sizes: Mapping[int, int], cost: Cost) -> tuple[int, ...]:
    """Always run the ready task that leaves the least memory alive; ties in the given order."""
    readers: dict[int, int] = {}
    consumers: dict[int, set[int]] = {}
    waiting: dict[int, int] = {}
    for index, task in enumerate(tasks):
        for buffer in set(task.reads):
            readers[buffer] = readers.get(buffer, 0) + 1
        waiting[index] = len(task.after)
        for earlier in task.after:
            consumers.setdefault(earlier, set()).add(index)
    ready = {index for index, count in waiting.items() if count == 0}
    order: list[int] = []
    begun: set[int] = set()

    def price(index: int) -> tuple[int, ...]:
        task = tasks[index]
        written = sum(sizes.get(b, 0) for b in task.writes if b not in begun)
        freed = sum(sizes.get(b, 0) for b in set(task.reads) if readers[b] == 1)
        return (*cost(written, freed), index)

    while ready:
        index = min(ready, key=price)
        ready.remove(index)
        order.append(index)
        begun.update(tasks[index].writes)
        for buffer in set(tasks[index].reads):
            readers[buffer] -= 1
        for later in consumers.get(index, ()):
            waiting[later] -= 1
            if waiting[later] == 0:
                ready.add(later)
    return tuple(order)
