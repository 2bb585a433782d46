"""Symbols take the numbers that given input shapes imply, and contradictions are named."""

from __future__ import annotations

import pytest

from tcomp.errors import InputError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.dims import symbol
from tcomp.relay.graph import Graph
from tcomp.relay.specialize import specialize


def symbolic_graph() -> Graph:
    b = GraphBuilder()
    x = b.input("x", (symbol("batch"), 3, symbol("h")))
    y = b.input("y", (symbol("batch"), 1, symbol("h")))
    return b.build(b.op("add", x, y))


def test_symbols_become_numbers_everywhere() -> None:
    graph = specialize(symbolic_graph(), {"x": (2, 3, 5)})
    assert graph.is_static
    assert [v.shape for v in (*graph.inputs, *graph.outputs)] == [(2, 3, 5), (2, 1, 5), (2, 3, 5)]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1,)}, "the inputs are x, y"),
        ({"x": (2, 3)}, "contradicts"),
        ({"x": (2, 4, 5)}, "contradicts"),
        ({"x": (2, 3, 5), "y": (3, 1, 5)}, "batch=2"),
    ],
)
def test_contradictions_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        specialize(symbolic_graph(), shapes)
