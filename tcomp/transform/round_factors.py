"""Products in tf32: float32 operands are rounded where they are multiplied, and stored as they are.

It runs on fused kernels. Tensors keep their types, so that products lose bits and nothing else does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from tcomp.relay.attributes import integer
from tcomp.relay.graph import Graph, Node
from tcomp.transform.anchor_attributes import set_on_anchors
from tcomp.transform.pass_ import Pass, declare_pass

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


@declare_pass
@dataclass(frozen=True)
class RoundFactors(Pass):
    """Let matrix products and ungrouped convolutions of float32 multiply tf32.

    `keep` names kernels that multiply float32, joined by `|`.
    """

    name: ClassVar[str] = "round-factors"
    keep: str = ""

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        changed, count = set_on_anchors(graph, self.keep, _can_round, multiply_as="tf32")
        if count:
            stats["products in tf32"] += count
        return changed


def _can_round(_kernel: Node, _body: Graph, anchor: Node) -> bool:
    if anchor.op not in ("matmul", *_CONVOLUTIONS) or anchor.attrs["multiply_as"]:
        return False
    grouped = anchor.op != "matmul" and integer(anchor.attrs, "groups") > 1
    return anchor.inputs[0].dtype == "float32" and not grouped
