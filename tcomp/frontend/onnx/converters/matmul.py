"""Matrix products."""

from __future__ import annotations

from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.relay.graph import Value


@converter("MatMul")
def matmul(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op("matmul", node.input(0), node.input(1))


@converter("Gemm")
def gemm(ctx: Context, node: OnnxNode) -> Value:
    """alpha * A' * B' + beta * C."""
    product = ctx.op(
        "matmul",
        node.input(0),
        node.input(1),
        transpose_a=bool(node.integer("transA", 0)),
        transpose_b=bool(node.integer("transB", 0)),
    )
    product = _scaled(ctx, product, node.real("alpha", 1.0))
    addend, beta = node.optional(2), node.real("beta", 1.0)
    if addend is None or beta == 0.0:
        return product
    return ctx.op("add", product, _scaled(ctx, addend, beta))


def _scaled(ctx: Context, x: Value, factor: float) -> Value:
    return x if factor == 1.0 else ctx.op("mul", x, ctx.constant(factor, x.dtype))
