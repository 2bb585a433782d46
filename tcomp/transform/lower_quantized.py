"""Products of dequantized operands as products of the narrow numbers, and what is left of `dequantize`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from tcomp.relay.graph import Graph
from tcomp.relay.rewrite import rewrite
from tcomp.transform.pass_ import Pass, declare_pass
from tcomp.transform.rules.quantized import (
    DEQUANTIZE,
    FLOAT8_PRODUCTS,
    FLOAT8_WEIGHTS,
    INTEGER_PRODUCTS,
    WEIGHTS,
)


@declare_pass
@dataclass(frozen=True)
class LowerQuantized(Pass):
    """Write `dequantize` as a cast, a subtraction and a multiplication, or, of the weights of large matrix
    products, as `dequantize_blocks`.

    With `integer_products`, convolutions and matrix products of dequantized operands, and of integers less
    their zero points, become int8 products summed in int32 before. Activations in uint8 become int8. With
    `float8_products`, those of dequantized float8 become float8 products summed in float32. With
    `float8_weights`, those of float8 are among the weights that become `dequantize_blocks`.
    """

    name: ClassVar[str] = "lower-quantized"
    integer_products: bool = False
    float8_products: bool = False
    float8_weights: bool = False

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        if self.integer_products:
            graph = rewrite(graph, INTEGER_PRODUCTS, stats)
        if self.float8_products:
            graph = rewrite(graph, FLOAT8_PRODUCTS, stats)
        if self.float8_weights:
            graph = rewrite(graph, FLOAT8_WEIGHTS, stats)
        return rewrite(rewrite(graph, WEIGHTS, stats), DEQUANTIZE, stats)
