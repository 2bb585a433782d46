"""Unrolled loops: one base for their addresses, simplified early only where that leaves less."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from tcomp.codegen.c_abi import build
from tcomp.codegen.unrolling import bind_bases, needs_simplification
from tcomp.target.host import host_target
from tcomp.tvm_api import structural_walk, tirx, tvm

SERIAL, UNROLLED = tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED
ROW, COUNTER = tirx.Var("row", "int32"), tirx.Var("u", "int32")
SOURCE, GOAL = (tirx.decl_buffer((4096,), "float32", name) for name in ("source", "goal"))


def copying(read: Any, write: Any) -> Any:
    """`for row in 8: for u in unroll(4): goal[write] = source[read]`."""
    store = tirx.BufferStore(GOAL, tirx.BufferLoad(SOURCE, [read]), [write])
    rows = tirx.For(ROW, 0, 8, SERIAL, tirx.For(COUNTER, 0, 4, UNROLLED, store))
    return tirx.PrimFunc([SOURCE, GOAL], rows)


def bases(function: Any) -> list[str]:
    found: list[Any] = []
    structural_walk(function.body, (tirx.Bind, found.append))
    return [str(bind.value) for bind in found]


def test_accesses_share_a_base_when_they_differ_by_what_is_unrolled() -> None:
    function = copying(ROW * 112 + COUNTER * 16 + 3, ROW * 112 + COUNTER * 32)
    assert bases(bind_bases(function)) == ['T.Cast("int64", row * 112)']


def test_bases_leave_addresses_as_they_are() -> None:
    function = copying((ROW - 3) * 24 - (COUNTER * 16 - ROW) + 120, ROW * 400 + COUNTER)
    source, goal = np.arange(4096, dtype=np.float32), np.zeros(4096, np.float32)
    for row, u in product(range(8), range(4)):
        goal[row * 400 + u] = (row - 3) * 24 - (u * 16 - row) + 120
    found = [tvm.runtime.tensor(array, tvm.cpu()) for array in (source, np.zeros(4096, np.float32))]
    build({"kernel": function}, host_target(), packed="main")["main"](*found)
    np.testing.assert_array_equal(found[1].numpy(), goal)


def test_an_index_of_counters_alone_has_no_base() -> None:
    assert not bases(bind_bases(copying(COUNTER * 16, COUNTER)))


def test_an_index_that_is_loaded_is_in_no_base() -> None:
    places = tirx.decl_buffer((8,), "int32", "places")
    function = copying(tirx.BufferLoad(places, [ROW]) + COUNTER, COUNTER)
    assert bases(bind_bases(function)) == bases(bind_bases(copying(ROW + COUNTER, COUNTER)))


def test_what_counters_decide_with_others_is_simplified_early() -> None:
    assert needs_simplification(copying(tirx.min(ROW + COUNTER, 5), ROW))
    assert needs_simplification(copying(tirx.floordiv(ROW * 3 + COUNTER, 2), ROW))
    assert not needs_simplification(copying(tirx.min(ROW, 5) + tirx.floordiv(COUNTER, 2), ROW))
