"""Resizing by interpolation, as ONNX defines it.

Interpolation is separable: along an axis every output element is a weighted sum of a few input elements,
its taps. Shapes are static when code is generated, so taps and weights are tables that `axis_taps` works
out; the `lower-resize` pass writes them as constants of gathers and products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tcomp.errors import TypeRuleError, UnsupportedError
from tcomp.ops.shapes import widened
from tcomp.relay.attributes import dims, flag, integers, number, numbers, one_of
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.op import REQUIRED, FusionKind, Op, Sample, declare
from tcomp.relay.types import FLOATS, Array, TensorType

MODES = ("nearest", "linear", "cubic")
NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
COORDINATE_MODES = (
    "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric",
    "tf_crop_and_resize",
)  # fmt: skip


_LONGEST_AXIS = 1 << 24
"""Positions and weights are computed for every element of an axis when compiling."""


@dataclass(frozen=True)
class Taps:
    """What each of `out` elements along an axis is made of.

    `indices` and `weights` are [taps, out]; `inside` is [out], False where the extrapolation value stands.
    """

    indices: Array
    weights: Array
    inside: Array


def axis_taps(attrs: Attrs, axis: int, extent: int, length: int) -> Taps | None:
    """The taps of a resize from `extent` to `length` elements along `axis`; None when nothing changes."""
    if length > _LONGEST_AXIS:
        raise UnsupportedError(
            f"`resize` of an axis to {length} elements; at most {_LONGEST_AXIS} are supported"
        )
    crops = attrs["coordinate_mode"] == "tf_crop_and_resize"
    if length == extent and numbers(attrs, "scales")[axis] == 1 and not crops:
        return None
    at = _coordinates(attrs, axis, extent, length)
    inside = np.ones(length, np.bool_)
    if crops:
        inside = (at >= 0) & (at <= extent - 1)
    if attrs["mode"] == "nearest":
        indices = _nearest(at, one_of(attrs, "nearest_mode", NEAREST_MODES))[None]
        weights = np.ones(indices.shape)
    else:
        indices, weights = _interpolation(attrs, at, numbers(attrs, "scales")[axis])
    if attrs["mode"] != "nearest" and flag(attrs, "exclude_outside"):
        weights = np.where((indices < 0) | (indices >= extent), 0.0, weights)
        weights = weights / weights.sum(axis=0)
    used = weights.any(axis=1)
    indices, weights = np.clip(indices[used], 0, extent - 1), weights[used]
    same = length == extent and len(indices) == 1 and bool((indices[0] == np.arange(length)).all())
    if same and bool(inside.all()) and bool((weights == 1).all()):
        return None
    return Taps(indices, weights, inside)


def _coordinates(attrs: Attrs, axis: int, extent: int, length: int) -> Array:
    """Where each output element lies on the input axis."""
    mode, scale = one_of(attrs, "coordinate_mode", COORDINATE_MODES), numbers(attrs, "scales")[axis]
    x = np.arange(length, dtype=np.float64)
    # The size before it was rounded down; a scale that is a quotient of sizes gives it up to rounding.
    size = length if abs(extent * scale - length) < 1e-6 * length else extent * scale
    if mode == "align_corners":
        return x * 0 if size == 1 else x * (extent - 1) / (size - 1)
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_crop_and_resize":
        region = numbers(attrs, "roi")
        start, end = region[axis], region[axis + len(region) // 2]
        if size == 1:
            return x * 0 + (start + end) * (extent - 1) / 2
        return start * (extent - 1) + x * (end - start) * (extent - 1) / (size - 1)
    if mode == "pytorch_half_pixel" and length == 1:
        return x * 0
    offset = extent / 2 * (1 - length / size) if mode == "half_pixel_symmetric" else 0.0
    return offset + (x + 0.5) / scale - 0.5


def _nearest(at: Array, mode: str) -> Array:
    if mode == "floor":
        rounded: Array = np.floor(at)
    elif mode == "ceil":
        rounded = np.ceil(at)
    elif mode == "round_prefer_floor":
        rounded = np.ceil(at - 0.5)
    else:
        rounded = np.floor(at + 0.5)
    return rounded.astype(np.int64)


def _interpolation(attrs: Attrs, at: Array, scale: float) -> tuple[Array, Array]:
    """Indices, which may lie outside the axis, and weights of all taps around `at`."""
    cubic = attrs["mode"] == "cubic"
    radius, shape = (2, _cubic(number(attrs, "cubic_coeff"))) if cubic else (1, _triangle)
    # Antialiasing stretches the filter over all the elements that fall together.
    stretch = min(scale, 1.0) if flag(attrs, "antialias") else 1.0
    first = int(np.floor(-radius / stretch)) + 1
    base = np.ceil(at) - 1
    offsets = np.arange(first, 2 - first)[:, None]
    weights = shape(np.abs((offsets - (at - base)) * stretch))
    if stretch != 1.0:
        weights = weights / weights.sum(axis=0)
    return (base + offsets).astype(np.int64), weights


def _triangle(distance: Array) -> Array:
    return np.clip(1 - distance, 0, 1)


def _cubic(a: float) -> Callable[[Array], Array]:
    """Keys' cubic convolution kernel."""

    def kernel(d: Array) -> Array:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return kernel


def _infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    (x,) = types
    sizes, scales = dims(attrs, "sizes", x.rank), numbers(attrs, "scales", x.rank)
    one_of(attrs, "mode", MODES)
    one_of(attrs, "nearest_mode", NEAREST_MODES)
    if min(scales, default=1.0) <= 0:
        raise TypeRuleError(f"`resize` scales are {scales}; they must be positive")
    if one_of(attrs, "coordinate_mode", COORDINATE_MODES) == "tf_crop_and_resize":
        numbers(attrs, "roi", 2 * x.rank)
    return [x.with_shape(sizes)]


def _evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    x = arrays[0]
    exact = attrs["mode"] == "nearest"
    result = x if exact else widened(x) if x.dtype.name in FLOATS else x.astype(np.float32)
    for axis, length in enumerate(integers(attrs, "sizes")):
        taps = axis_taps(attrs, axis, x.shape[axis], length)
        if taps is None:
            continue
        spread = [-1 if a == axis else 1 for a in range(x.ndim)]
        parts = [np.take(result, row, axis=axis) for row in taps.indices]
        if not exact:
            weights = taps.weights.astype(result.dtype)
            parts = [p * w.reshape(spread) for p, w in zip(parts, weights, strict=True)]
        total = np.add.reduce(parts, axis=0, dtype=result.dtype)
        outside = np.asarray(number(attrs, "extrapolation_value")).astype(result.dtype)
        result = np.where(taps.inside.reshape(spread), total, outside)
    return [result.astype(x.dtype)]


def _sample(x: tuple[int, ...], sizes: tuple[int, ...], dtype: str = "float32", **attrs: Attr) -> Sample:
    scales = tuple(s / e for s, e in zip(sizes, x, strict=True))
    given: dict[str, Attr] = {"sizes": sizes, "scales": scales, **attrs}
    tolerance = 5e-3 if dtype == "float16" else 1e-5
    return Sample((TensorType(x, dtype),), given, rtol=tolerance, atol=tolerance)


_REGION = (0.0, 0.0, 0.2, -0.4, 1.0, 1.0, 0.7, 1.2)
_MODE_SAMPLES = tuple(
    _sample(
        (1, 2, 5, 4), (1, 2, 8, 3), mode=mode, coordinate_mode=coordinates, nearest_mode=nearest,
        extrapolation_value=1.5, roi=_REGION,
    )
    for mode in MODES
    for coordinates, nearest in zip(COORDINATE_MODES, NEAREST_MODES + NEAREST_MODES[:2], strict=True)
)  # fmt: skip

declare(
    Op(
        name="resize",
        infer=_infer,
        evaluate=_evaluate,
        compute=None,
        kind=FusionKind.OPAQUE,
        attrs={
            "sizes": REQUIRED,
            "scales": REQUIRED,
            "mode": "nearest",
            "coordinate_mode": "half_pixel",
            "nearest_mode": "round_prefer_floor",
            "cubic_coeff": -0.75,
            "exclude_outside": False,
            "extrapolation_value": 0.0,
            "antialias": False,
            "roi": (),
        },
        flops_per_element=8,
        samples=(
            *_MODE_SAMPLES,
            _sample((1, 1, 9, 8), (1, 1, 4, 3), mode="linear", antialias=True),
            _sample((1, 1, 9, 8), (1, 1, 4, 3), mode="cubic", antialias=True, exclude_outside=True),
            _sample((1, 1, 4, 5), (1, 1, 7, 9), mode="cubic", cubic_coeff=-0.5, exclude_outside=True),
            _sample((2, 3, 4), (4, 6, 2), mode="linear"),
            _sample((1, 3, 4), (1, 6, 8), "uint8"),
            _sample((1, 3, 4), (1, 5, 8), "float16", mode="linear"),
            _sample((1, 3, 4), (1, 5, 8), "int32", mode="linear"),
        ),
    )
)
