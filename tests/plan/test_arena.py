"""Arena offsets and orders, as properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcomp.plan.arena import Lifetime, live_bytes, place
from tcomp.plan.order import Task, choose_order, lifetimes
from tcomp.plan.program import ALIGNMENT, aligned


@st.composite
def spans(draw: st.DrawFn) -> list[Lifetime]:
    steps = st.integers(0, 12)
    pairs = draw(st.lists(st.tuples(steps, steps, st.integers(0, 2000)), max_size=25))
    return [Lifetime(nbytes, min(a, b), max(a, b)) for a, b, nbytes in pairs]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Task], dict[int, int]]:
    """Tasks that each write one or two buffers, or parts of earlier ones, and read earlier ones; some lie
    outside the arena."""
    tasks: list[Task] = []
    writers: dict[int, set[int]] = {}
    count = 0
    for _ in range(draw(st.integers(1, 12))):
        reads = draw(st.lists(st.integers(0, count - 1), max_size=3)) if count else []
        writes = tuple(range(count, count + draw(st.integers(1, 2))))
        parts = draw(st.lists(st.integers(0, count - 1), max_size=1)) if count else []
        count += len(writes)
        after = frozenset[int]().union(*(writers[b] for b in reads))
        for buffer in (*writes, *parts):
            writers.setdefault(buffer, set()).add(len(tasks))
        tasks.append(Task(tuple(reads), (*writes, *parts), after, draw(st.sampled_from((0, 0, 640)))))
    sizes = {b: draw(st.integers(1, 3000)) for b in range(count) if draw(st.integers(0, 5))}
    return tasks, sizes


@given(spans())
def test_live_buffers_never_overlap(buffers: list[Lifetime]):
    arena = place(buffers)
    for i, (a, at) in enumerate(zip(buffers, arena.offsets, strict=True)):
        assert at % ALIGNMENT == 0
        assert at + a.nbytes <= arena.nbytes
        for b, start in list(zip(buffers, arena.offsets, strict=True))[i + 1 :]:
            if a.overlaps(b) and a.nbytes and b.nbytes:
                assert at + a.nbytes <= start or start + b.nbytes <= at


@given(spans())
def test_the_bound_is_a_bound(buffers: list[Lifetime]):
    assert live_bytes(buffers) <= place(buffers).nbytes <= sum(aligned(b.nbytes) for b in buffers)


@given(graphs())
def test_orders_are_topological_and_never_worse(graph: tuple[list[Task], dict[int, int]]):
    tasks, sizes = graph
    chosen = choose_order(tasks, sizes)
    assert sorted(chosen.order) == list(range(len(tasks)))
    done: set[int] = set()
    for index in chosen.order:
        assert done.issuperset(tasks[index].after)
        done.add(index)
    assert chosen.live_bytes <= live_bytes(lifetimes(tasks, range(len(tasks)), sizes)[0])


def test_a_wide_graph_is_reordered():
    """Eight branches given breadth first: finishing each branch before the next needs far less memory."""
    wide = [Task((), (i,)) for i in range(8)]
    narrow = [Task((i,), (8 + i,), frozenset({i})) for i in range(8)]
    join = Task(tuple(range(8, 16)), (16,), frozenset(range(8, 16)))
    sizes = {i: 6400 if i < 8 else 64 for i in range(17)}
    assert choose_order([*wide, *narrow, join], sizes).live_bytes <= 6400 + 8 * 64


def test_chains_need_two_buffers():
    buffers = [Lifetime(1000, step, step + 1) for step in range(50)]
    assert place(buffers).nbytes == 2 * aligned(1000)
