"""Graphs of quantized numbers, as the importer writes them."""

from __future__ import annotations

import numpy as np

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph, Value
from tcomp.relay.types import numpy_dtype

RNG = np.random.default_rng(0)


def quantize(g: GraphBuilder, x: Value, scale: float, zero: int, dtype: str) -> Value:
    """As the importer writes QuantizeLinear."""
    limits = np.iinfo(dtype)
    levels = g.op("round", g.op("div", x, g.constant(np.float32(scale))))
    levels = g.op("add", levels, g.constant(np.float32(zero)))
    return g.op("cast", g.op("clip", levels, min=float(limits.min), max=float(limits.max)), dtype=dtype)


def dequantize(g: GraphBuilder, x: Value, scale: float, zero: int) -> Value:
    return g.op("dequantize", x, g.constant(np.float32(scale)), g.constant(zero, x.dtype))


def weights(g: GraphBuilder, *shape: int, axis: int = 0, zero: int = 0, dtype: str = "int8") -> Value:
    """Dequantized constants, scaled along `axis`."""
    limits = np.iinfo(dtype)
    data = RNG.integers(limits.min, limits.max + 1, shape).astype(numpy_dtype(dtype))
    along = [1] * len(shape)
    along[axis] = shape[axis]
    scale = RNG.uniform(0.5, 1.5, along).astype(np.float32) / np.float32(128 * np.sqrt(np.prod(shape[1:])))
    return g.op("dequantize", g.constant(data), g.constant(scale), g.constant(zero, dtype))


def convolutions(dtype: str) -> Graph:
    """A padded convolution, a strided one, a residual, all of numbers in `dtype` with a zero point."""
    zero = 100 if dtype == "uint8" else -28
    g = GraphBuilder()
    x = quantize(g, g.input("x", (1, 8, 9, 9)), 0.03, zero, dtype)
    y = g.op("conv2d", dequantize(g, x, 0.03, zero), weights(g, 12, 8, 3, 3), padding=(1, 1, 1, 1))
    bias = g.constant(RNG.standard_normal((12, 1, 1)).astype(np.float32))
    y = quantize(g, g.op("relu", g.op("add", y, bias)), 0.02, zero - 100, dtype)
    y = dequantize(g, y, 0.02, zero - 100)
    z = quantize(g, g.op("conv2d", y, weights(g, 12, 12, 1, 1)), 0.02, zero, dtype)
    z = g.op("add", dequantize(g, z, 0.02, zero), y)
    return g.build(quantize(g, z, 0.03, zero, dtype))
