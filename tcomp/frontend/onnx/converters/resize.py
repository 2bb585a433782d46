"""Resize and its older forms."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from tcomp.errors import ModelError
from tcomp.frontend.onnx.axes import normalise_axes, static_dim
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Attr, Value


@converter("Upsample")
def upsample_by_attribute(ctx: Context, node: OnnxNode) -> Value:
    scales = tuple(float(s) for s in node.attrs["scales"])
    return _asymmetric(ctx, node, scales)


@converter("Upsample", since=9)
@converter("Resize", since=10)
def upsample(ctx: Context, node: OnnxNode) -> Value:
    return _asymmetric(ctx, node, _floats(ctx, node.input(1), "scales"))


def _asymmetric(ctx: Context, node: OnnxNode, scales: tuple[float, ...]) -> Value:
    """Before opset 11: positions are divided by the scale; `nearest` rounds down."""
    return _resize(ctx, node.input(0), scales, None, node, "asymmetric", "floor")


@converter("Resize", since=11)
def resize(ctx: Context, node: OnnxNode) -> Value:
    x = node.input(0)
    axes = normalise_axes(node.integers("axes", tuple(range(x.type.rank))), x)
    scales_operand, sizes_operand = node.optional(2), node.optional(3)
    scales = [1.0] * x.type.rank
    sizes: list[int] | None = None
    if sizes_operand is not None and sizes_operand.type.size != 0:
        wanted = ctx.integers(sizes_operand, "sizes")
        shape = [static_dim(x, axis, "with sizes, its input size") for axis in axes]
        wanted, ratios = _keep_ratio(wanted, shape, node.text("keep_aspect_ratio_policy", "stretch"))
        sizes = [static_dim(x, axis, "with sizes, its input size") for axis in range(x.type.rank)]
        for axis, size, ratio in zip(axes, wanted, ratios, strict=True):
            sizes[axis], scales[axis] = size, ratio
    elif scales_operand is not None:
        for axis, scale in zip(axes, _floats(ctx, scales_operand, "scales"), strict=True):
            scales[axis] = scale
    else:
        raise ModelError("it has neither scales nor sizes")
    mode = node.text("coordinate_transformation_mode", "half_pixel")
    nearest = node.text("nearest_mode", "round_prefer_floor")
    attrs: dict[str, Attr] = {}
    roi = node.optional(1)
    if mode == "tf_crop_and_resize" and roi is not None:
        attrs["roi"] = _region(_floats(ctx, roi, "roi"), axes, x.type.rank)
    return _resize(ctx, x, tuple(scales), sizes, node, mode, nearest, attrs)


def _keep_ratio(
    wanted: Sequence[int], shape: Sequence[int], policy: str
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Output sizes and scales; a policy other than `stretch` uses one scale for all axes."""
    ratios = [w / s for w, s in zip(wanted, shape, strict=True)]
    if policy == "stretch":
        return tuple(wanted), tuple(ratios)
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return tuple(floor(scale * s + 0.5) for s in shape), (scale,) * len(shape)


def _region(roi: Sequence[float], axes: Sequence[int], rank: int) -> tuple[float, ...]:
    """The region of all axes (starts, then ends); axes that are not named are taken whole."""
    starts, ends = [0.0] * rank, [1.0] * rank
    for i, axis in enumerate(axes):
        starts[axis], ends[axis] = roi[i], roi[len(axes) + i]
    return (*starts, *ends)


def _resize(
    ctx: Context,
    x: Value,
    scales: tuple[float, ...],
    sizes: Sequence[int] | None,
    node: OnnxNode,
    coordinate_mode: str,
    nearest_mode: str,
    attrs: dict[str, Attr] | None = None,
) -> Value:
    if len(scales) != x.type.rank:
        raise ModelError(f"{len(scales)} scales do not fit {x.type}")
    shape = tuple(sizes) if sizes is not None else tuple(_scaled(x, axis, s) for axis, s in enumerate(scales))
    if shape == x.shape and coordinate_mode != "tf_crop_and_resize":
        return x
    return ctx.op(
        "resize",
        x,
        sizes=shape,
        scales=scales,
        mode=node.text("mode", "nearest"),
        coordinate_mode=coordinate_mode,
        nearest_mode=nearest_mode,
        cubic_coeff=node.real("cubic_coeff_a", -0.75),
        exclude_outside=bool(node.integer("exclude_outside", 0)),
        extrapolation_value=node.real("extrapolation_value", 0.0),
        antialias=bool(node.integer("antialias", 0)),
        **(attrs or {}),
    )


def _scaled(x: Value, axis: int, scale: float) -> Dim:
    """floor(size * scale); a symbolic size may be scaled by a whole number."""
    size = x.shape[axis]
    if not isinstance(size, int) and scale == int(scale):
        return size * int(scale)
    return floor(static_dim(x, axis, "its input size") * scale)


def _floats(ctx: Context, value: Value, what: str) -> tuple[float, ...]:
    return tuple(float(f) for f in ctx.array(value, what).reshape(-1))
