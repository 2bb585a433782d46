"""Fold batch normalisation and constant scales into the weights of convolutions and matmuls."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from tcomp.relay.graph import Graph
from tcomp.relay.rewrite import rewrite
from tcomp.transform.pass_ import Pass, declare_pass
from tcomp.transform.rules.arithmetic import CONSTANT_CHAINS
from tcomp.transform.rules.scales import BATCH_NORM, SCALES


@declare_pass
@dataclass(frozen=True)
class FoldScales(Pass):
    """Batch normalisation becomes a multiplication and an addition; constant factors go into the weights."""

    name: ClassVar[str] = "fold-scales"

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        return rewrite(graph, (*BATCH_NORM, *SCALES, *CONSTANT_CHAINS), stats)
