"""Recognise operators that exporters spell out in small ones: activations, normalisations, attention."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from tcomp.relay.graph import Graph
from tcomp.relay.rewrite import rewrite
from tcomp.transform.pass_ import Pass, declare_pass
from tcomp.transform.rules.activations import ACTIVATIONS
from tcomp.transform.rules.attention import ATTENTION
from tcomp.transform.rules.norms import NORMS


@declare_pass
@dataclass(frozen=True)
class RecognizeActivations(Pass):
    """gelu, silu, mish, softplus, sigmoid, hard-sigmoid and hard-swish."""

    name: ClassVar[str] = "recognize-activations"

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        return rewrite(graph, ACTIVATIONS, stats)


@declare_pass
@dataclass(frozen=True)
class RecognizeNorms(Pass):
    """Layer and RMS normalisation, with scale and shift."""

    name: ClassVar[str] = "recognize-norms"

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        return rewrite(graph, NORMS, stats)


@declare_pass
@dataclass(frozen=True)
class RecognizeAttention(Pass):
    """Scaled dot-product attention, with masks that are added or choose, or without."""

    name: ClassVar[str] = "recognize-attention"

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        return rewrite(graph, ATTENTION, stats)
