"""Algebraic simplification: the identities of `rules.arithmetic` and `rules.movement`, to fixpoint."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from tcomp.relay.graph import Graph
from tcomp.relay.rewrite import rewrite
from tcomp.transform.pass_ import Pass, declare_pass
from tcomp.transform.rules.arithmetic import ARITHMETIC
from tcomp.transform.rules.movement import MOVEMENT


@declare_pass
@dataclass(frozen=True)
class Simplify(Pass):
    """Replace expressions by equal ones that cost less; float results may differ in the last bits."""

    name: ClassVar[str] = "simplify"

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        return rewrite(graph, (*ARITHMETIC, *MOVEMENT), stats)
