"""One form for contractions and for where views and transposes stand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from tcomp.relay.graph import Graph
from tcomp.relay.rewrite import rewrite
from tcomp.transform.pass_ import Pass, declare_pass
from tcomp.transform.rules.contractions import CONTRACTIONS
from tcomp.transform.rules.movement import SLICES, VIEWS
from tcomp.transform.rules.sinking import sink_reshape_rules, sink_transpose_rules


@declare_pass
@dataclass(frozen=True)
class CanonicalizeContractions(Pass):
    """Matmuls by a matrix get one row axis, convolutions and pools two spatial axes.

    The reshapes around them move down to where they cancel or end a kernel.
    """

    name: ClassVar[str] = "canonicalize-contractions"

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        return rewrite(graph, (*CONTRACTIONS, *VIEWS, *SLICES, *sink_reshape_rules()), stats)


@declare_pass
@dataclass(frozen=True)
class SinkTransposes(Pass):
    """Move transposes down through elementwise operators to where they cancel."""

    name: ClassVar[str] = "sink-transposes"

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        return rewrite(graph, (*VIEWS, *sink_transpose_rules()), stats)
