"""Products that may be computed by Strassen's algorithm, where they gain from it and rounding is let go.

It runs on fused kernels. Errors of that algorithm are as large as those of other rows and columns
(`tcomp.tensor.strassen.nest`), so that only `--precision fast` asks for it, where 16 bits are no faster.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from tcomp.relay.attributes import integer, integers
from tcomp.relay.graph import Constant, Graph, Node
from tcomp.transform.anchor_attributes import set_on_anchors
from tcomp.transform.pass_ import Pass, declare_pass


@declare_pass
@dataclass(frozen=True)
class AllowStrassen(Pass):
    """Let products of float32 with constant weights, and pointwise convolutions, multiply sums of elements.

    `keep` names kernels that do not, joined by `|`.
    """

    name: ClassVar[str] = "allow-strassen"
    keep: str = ""

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        changed, count = set_on_anchors(graph, self.keep, _gains, strassen=True)
        if count:
            stats["products of sums"] += count
        return changed


def _gains(kernel: Node, body: Graph, anchor: Node) -> bool:
    """Whether `anchor` is a float32 product with constant weights, of matrices or of pixels."""
    if anchor.op not in ("matmul", "conv2d") or anchor.inputs[0].dtype != "float32":
        return False
    outer = dict(zip(body.inputs, kernel.inputs, strict=True))
    if not isinstance(outer.get(anchor.inputs[1]), Constant):
        return False
    if anchor.op == "matmul":
        return True
    taps = prod(anchor.inputs[1].type.static_shape[2:])
    return taps == integer(anchor.attrs, "groups") == 1 and not any(integers(anchor.attrs, "padding"))
