"""Sliding windows of convolution and pooling: kernel, strides, dilations, explicit and automatic padding."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.context import SHAPE_REMEDY, OnnxNode
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Value


@dataclass(frozen=True)
class Window:
    """One entry for each spatial axis; `padding` is all begins, then all ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)


def read_window(node: OnnxNode, x: Value, kernel: tuple[int, ...]) -> Window:
    """The window of a convolution or pooling over `x` [N, C, spatial...].

    Raises ModelError when the attributes do not fit the rank, UnsupportedError when automatic padding
    needs a size that is symbolic.
    """
    rank = len(kernel)
    if x.type.rank != rank + 2:
        raise ModelError(f"its window {list(kernel)} does not fit its input {x.type}")
    strides = node.integers("strides", (1,) * rank)
    dilation = node.integers("dilations", (1,) * rank)
    padding = node.integers("pads", (0,) * (2 * rank))
    if len(strides) != rank or len(dilation) != rank or len(padding) != 2 * rank:
        raise ModelError(
            f"strides {strides}, dilations {dilation}, pads {padding} do not fit {rank} spatial axes"
        )
    mode = node.text("auto_pad", "NOTSET")
    if mode == "VALID":
        padding = (0,) * (2 * rank)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        padding = _same_padding(x.shape[2:], kernel, strides, dilation, mode)
    elif mode != "NOTSET":
        raise ModelError(f"auto_pad `{mode}` is none of NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    return Window(kernel, strides, dilation, padding)


def split_padding(total: int, upper: bool) -> tuple[int, int]:
    """`total` cells before and after an axis; the odd one goes to the end if `upper`."""
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def _same_padding(
    sizes: tuple[Dim, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilation: tuple[int, ...],
    mode: str,
) -> tuple[int, ...]:
    """Padding that makes the output ceil(size / stride) cells long."""
    pairs: list[tuple[int, int]] = []
    for size, k, stride, d in zip(sizes, kernel, strides, dilation, strict=True):
        extent = (k - 1) * d + 1
        if isinstance(size, int):
            total = max(0, (-(-size // stride) - 1) * stride + extent - size)
        elif stride == 1:
            total = extent - 1
        else:
            raise UnsupportedError(f"its auto_pad {mode} depends on the dimension `{size}`; {SHAPE_REMEDY}")
        pairs.append(split_padding(total, mode == "SAME_UPPER"))
    return tuple(begin for begin, _ in pairs) + tuple(end for _, end in pairs)
