"""Rounding to floats of 8 bits as ONNX says: with and without saturation."""

from __future__ import annotations

from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.relay.graph import Value
from tcomp.relay.types import FLOAT8, FLOATS

LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def cast_to(ctx: Context, node: OnnxNode, x: Value, dtype: str) -> Value:
    """`x` as `dtype`.

    Numbers, infinite ones too, that a float of 8 bits does not reach become the largest one unless the node's
    `saturate` is 0: then infinity, or NaN in e4m3fn.
    """
    if dtype not in FLOAT8 or x.dtype == dtype:
        return ctx.cast(x, dtype)
    real = x if x.dtype in FLOATS else ctx.cast(x, "float32")
    if node.integer("saturate", 1):
        real = ctx.op("clip", real, min=-LARGEST[dtype], max=LARGEST[dtype])
    return ctx.cast(real, dtype)
