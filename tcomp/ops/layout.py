"""Between the plain and the blocked channel layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tcomp.errors import TypeRuleError
from tcomp.ops.shapes import static_shape
from tcomp.relay.attributes import integer, text
from tcomp.relay.graph import Attrs
from tcomp.relay.layouts import channel_block, from_layout, layout_shape, to_layout
from tcomp.relay.op import REQUIRED, FusionKind, Op, Sample, declare
from tcomp.relay.types import Array, TensorType
from tcomp.tvm_api import Tensor, te, tirx


def _infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    (x,) = types
    source, channels = text(attrs, "src"), integer(attrs, "channels")
    blocked = channel_block(source) is not None
    if x.rank < (3 if blocked else 2):
        raise TypeRuleError(f"`layout_transform` takes a tensor in layout {source}, not {x}")
    spatial = x.shape[2:-1] if blocked else x.shape[2:]
    if x.shape != layout_shape(x.shape[0], channels, spatial, source):
        raise TypeRuleError(f"{x} does not hold {channels} channels in layout {source}")
    return [x.with_shape(layout_shape(x.shape[0], channels, spatial, text(attrs, "dst")))]


def _evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    plain = from_layout(arrays[0], text(attrs, "src"), integer(attrs, "channels"))
    return [to_layout(plain, text(attrs, "dst")).copy()]


def _compute(inputs: Sequence[Tensor], attrs: Attrs, outputs: Sequence[TensorType]) -> list[Tensor]:
    (x,) = inputs
    channels = integer(attrs, "channels")
    source, target = channel_block(text(attrs, "src")), channel_block(text(attrs, "dst"))
    held = static_shape(x)[1] * (source or 1)

    def element(*index: Any) -> Any:
        channel = index[1] if target is None else index[1] * target + index[-1]
        spatial = index[2:] if target is None else index[2:-1]
        if source is None:
            value = x(index[0], channel, *spatial)
        else:
            value = x(index[0], channel // source, *spatial, channel % source)
        reached = outputs[0].static_shape[1] * (target or 1)
        if reached <= min(channels, held):
            return value
        return tirx.if_then_else(channel < channels, value, tirx.const(0, x.dtype))

    return [te.compute(outputs[0].static_shape, element, name="layout_transform")]


def _sample(shape: tuple[int, ...], src: str, dst: str, channels: int, dtype: str = "float32") -> Sample:
    return Sample((TensorType(shape, dtype),), {"src": src, "dst": dst, "channels": channels})


declare(
    Op(
        name="layout_transform",
        infer=_infer,
        evaluate=_evaluate,
        compute=_compute,
        kind=FusionKind.MOVEMENT,
        attrs={"src": REQUIRED, "dst": REQUIRED, "channels": REQUIRED},
        flops_per_element=0,
        samples=(
            _sample((1, 32, 3, 4), "NCHW", "NCHW16c", 32),
            _sample((2, 19, 3, 2), "NCHW", "NCHW16c", 19),
            _sample((1, 2, 3, 4, 16), "NCHW16c", "NCHW", 32),
            _sample((1, 2, 3, 2, 16), "NCHW16c", "NCHW", 21, "float16"),
            _sample((1, 3, 5, 8), "NCHW8c", "NCHW16c", 20),
            _sample((1, 5, 4, 3, 2), "NCHW", "NCHW8c", 5),
        ),
    )
)
