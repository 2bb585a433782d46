"""Reading and writing elements at computed positions."""

from __future__ import annotations

from tcomp.errors import ModelError
from tcomp.frontend.onnx.axes import normalise_axis
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.relay.graph import Value


@converter("Gather")
def gather(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    return ctx.op("gather", x, node.input(1), axis=normalise_axis(node.integer("axis", 0), x))


@converter("GatherElements")
def gather_elements(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    return ctx.op("gather_elements", x, node.input(1), axis=normalise_axis(node.integer("axis", 0), x))


@converter("GatherND")
def gather_nd(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op("gather_nd", node.input(0), node.input(1), batch_dims=node.integer("batch_dims", 0))


@converter("Scatter", "ScatterElements")
def scatter_elements(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    return ctx.op(
        "scatter_elements",
        x,
        node.input(1),
        node.input(2),
        axis=normalise_axis(node.integer("axis", 0), x),
        reduction=node.text("reduction", "none"),
    )


@converter("ScatterND")
def scatter_nd(ctx: Context, node: OnnxNode) -> Value:
    x, indices, updates = node.input(0), node.input(1), node.input(2)
    return ctx.op("scatter_nd", x, indices, updates, reduction=node.text("reduction", "none"))


@converter("OneHot")
def one_hot(ctx: Context, node: OnnxNode) -> Value:
    indices, values = node.input(0), node.input(2)
    depths = ctx.integers(node.input(1), "depth")
    if len(depths) != 1:
        raise ModelError(f"its depth has {len(depths)} elements, not one")
    indices = indices if indices.dtype in ("int32", "int64") else ctx.cast(indices, "int64")
    axis = normalise_axis(node.integer("axis", -1), indices, extra=1)
    return ctx.op("one_hot", indices, values, depth=depths[0], axis=axis)


@converter("ReverseSequence")
def reverse_sequence(ctx: Context, node: OnnxNode) -> Value:
    return ctx.op(
        "reverse_sequence",
        node.input(0),
        node.input(1),
        time_axis=node.integer("time_axis", 0),
        batch_axis=node.integer("batch_axis", 1),
    )
