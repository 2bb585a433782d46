"""Convolution and transposed convolution in one to three dimensions."""

from __future__ import annotations

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.axes import static_dim
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.frontend.onnx.windows import read_window, split_padding
from tcomp.relay.graph import Value


def _kernel(node: OnnxNode, weight: Value) -> tuple[int, ...]:
    """The window's shape, from the attribute or the weight [., ., spatial...]; both must agree."""
    rank = weight.type.rank - 2
    if not 1 <= rank <= 3:
        raise UnsupportedError(f"its weight {weight.type} has {rank} spatial axes; 1 to 3 are supported")
    actual = tuple(static_dim(weight, axis, "its kernel") for axis in range(2, rank + 2))
    declared = node.optional_integers("kernel_shape")
    if declared is not None and declared != actual:
        raise ModelError(f"kernel_shape {list(declared)} contradicts its weight {weight.type}")
    return actual


def add_channel_bias(ctx: Context, x: Value, bias: Value | None) -> Value:
    """x [N, C, ...] + bias [C]."""
    if bias is None:
        return x
    return ctx.op("add", x, ctx.reshape(bias, (1, bias.shape[0], *(1,) * (x.type.rank - 2))))


@converter("Conv")
def conv(ctx: Context, node: OnnxNode) -> Value:
    result = convolve(ctx, node, node.input(0), node.input(1))
    return add_channel_bias(ctx, result, node.optional(2))


def convolve(ctx: Context, node: OnnxNode, x: Value, weight: Value) -> Value:
    """The convolution that the node's attributes describe."""
    window = read_window(node, x, _kernel(node, weight))
    return ctx.op(
        f"conv{window.rank}d",
        x,
        weight,
        strides=window.strides,
        padding=window.padding,
        dilation=window.dilation,
        groups=node.integer("group", 1),
    )


@converter("ConvTranspose")
def conv_transpose(ctx: Context, node: OnnxNode) -> Value:
    x, weight = node.input(0), node.input(1)
    kernel = _kernel(node, weight)
    rank = len(kernel)
    strides = node.integers("strides", (1,) * rank)
    dilation = node.integers("dilations", (1,) * rank)
    padding, output_padding = _transpose_padding(node, x, kernel, strides, dilation)
    result = ctx.op(
        f"conv{rank}d_transpose",
        x,
        weight,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=node.integer("group", 1),
        output_padding=output_padding,
    )
    return add_channel_bias(ctx, result, node.optional(2))


def _transpose_padding(
    node: OnnxNode, x: Value, kernel: tuple[int, ...], strides: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(padding, output_padding). A wanted output size, given or by SAME_*, decides the padding.

    size = stride * (in - 1) + output_padding + (kernel - 1) * dilation + 1 - padding
    """
    rank = len(kernel)
    mode = node.text("auto_pad", "NOTSET")
    extra = node.integers("output_padding", (0,) * rank)
    wanted = node.optional_integers("output_shape")
    if wanted is None and mode not in ("SAME_UPPER", "SAME_LOWER"):
        return (0,) * (2 * rank) if mode == "VALID" else node.integers("pads", (0,) * (2 * rank)), extra
    begins, ends, extras = list[int](), list[int](), list[int]()
    for i in range(rank):
        size = static_dim(x, i + 2, "with output_shape or auto_pad SAME its input size")
        target = wanted[len(wanted) - rank + i] if wanted is not None else size * strides[i]
        full = strides[i] * (size - 1) + extra[i] + (kernel[i] - 1) * dilation[i] + 1
        begin, end = split_padding(max(0, full - target), upper=mode == "SAME_UPPER")
        begins.append(begin)
        ends.append(end)
        extras.append(extra[i] + max(0, target - full))
    return (*begins, *ends), tuple(extras)
