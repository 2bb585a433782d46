"""Kernels of the sizes that models have, one for each kind of template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tcomp.relay.builder import GraphBuilder
from tcomp.tensor.kernel import Kernel


def kernel(op: str, *shapes: tuple[int, ...], dtype: str = "float32", **attrs: Any) -> Kernel:
    """The kernel of one operator whose first input is an activation and the others weights."""
    g = GraphBuilder(op)
    inputs = [g.input(f"x{i}", shape, dtype) for i, shape in enumerate(shapes)]
    return Kernel(g.build(g.op(op, *inputs, **attrs)), frozenset(range(1, len(shapes))))


def unpacked_product(rows: int, columns: int, depth: int) -> Kernel:
    """A product with weights of 4 bits in blocks of 32."""
    g = GraphBuilder("unpacked_product")
    packed = g.input("packed", (columns, depth // 2), "uint8")
    scales, zero = g.input("scales", (columns, depth // 32), "float16"), g.constant(np.uint8(8))
    weights = g.op("dequantize_blocks", packed, scales, zero, bits=4, block=32, columns=depth)
    x = g.input("x", (rows, depth), "float16")
    return Kernel(g.build(g.op("matmul", x, weights, transpose_b=True)), frozenset((0, 1)))


KERNELS: Mapping[str, Kernel] = {
    "relu": kernel("relu", (1, 64, 56, 56)),
    "transpose": kernel("transpose", (8, 128, 256), axes=(0, 2, 1)),
    "softmax": kernel("softmax", (12, 128, 128), axis=2),
    "layer_norm": kernel("layer_norm", (128, 768), (768,), (768,), axis=1),
    "sum of columns": kernel("reduce_sum", (64, 56, 56), axes=(0,), keepdims=False),
    "matmul": kernel("matmul", (128, 768), (768, 768)),
    "conv2d": kernel("conv2d", (1, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1, 1, 1)),
    "matmul, float16": kernel("matmul", (128, 768), (768, 768), dtype="float16"),
    "conv2d, float16": kernel(
        "conv2d", (1, 64, 56, 56), (64, 64, 3, 3), dtype="float16", padding=(1, 1, 1, 1)
    ),
    "attention": kernel("attention", *((12, 128, 64),) * 3, scale=0.125),
    "attention, float16": kernel("attention", *((12, 128, 64),) * 3, dtype="float16", scale=0.125),
    "matmul, one row": kernel("matmul", (1, 1024), (1024, 1024), dtype="float16"),
    "matmul, 4 bits": unpacked_product(1, 1024, 1024),
    "attention, one query": kernel(
        "attention", (12, 1, 64), (12, 1024, 64), (12, 1024, 64), dtype="float16", scale=0.125
    ),
    "cumulative sum": kernel("cumsum", (64, 128), axis=1),
    "depthwise": kernel("conv2d", (1, 96, 56, 56), (96, 1, 3, 3), padding=(1, 1, 1, 1), groups=96),
    "max_pool2d": kernel(
        "max_pool2d", (1, 64, 112, 112), kernel=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1)
    ),
}
