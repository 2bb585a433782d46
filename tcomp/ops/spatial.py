"""What convolution and pooling share: sliding windows over the spatial axes.

Spatial axes follow the batch and channel axes, in the plain and the blocked layout alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from tcomp.errors import TypeRuleError
from tcomp.relay.attributes import integers
from tcomp.relay.dims import Dim
from tcomp.relay.graph import Attr, Attrs
from tcomp.relay.types import Array
from tcomp.tvm_api import Tensor, te, tirx

FIRST = 2
"""The first spatial axis."""


def window_attrs(rank: int) -> dict[str, Attr]:
    """Declaration of the attributes that describe a window, with their defaults."""
    return {"strides": (1,) * rank, "padding": (0,) * (2 * rank), "dilation": (1,) * rank}


@dataclass(frozen=True)
class Window:
    """A window sliding over `rank` axes; one entry an axis in every field."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    dilation: tuple[int, ...]

    @staticmethod
    def of(kernel: tuple[int, ...], attrs: Attrs) -> Window:
        """The window of size `kernel` with the strides, padding and dilation of `attrs`."""
        rank = len(kernel)
        padding = integers(attrs, "padding", 2 * rank)
        strides, dilation = integers(attrs, "strides", rank), integers(attrs, "dilation", rank)
        if min(kernel + strides + dilation) < 1:
            raise TypeRuleError(
                f"kernel {kernel}, strides {strides} and dilation {dilation} must all be positive"
            )
        return Window(kernel, strides, padding[:rank], padding[rank:], dilation)

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from the first to the last tap, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def outputs(self, extents: Sequence[Dim], ceil_mode: bool = False) -> tuple[Dim, ...]:
        """Number of window positions on each axis.

        With `ceil_mode` a last window may overhang the end, unless it would start in the end padding
        (ONNX). Raises TypeRuleError when no window fits.
        """
        found: list[Dim] = []
        for extent, reach, stride, begin, end in zip(
            extents, self.reach, self.strides, self.begin, self.end, strict=True
        ):
            room = extent + (begin + end - reach)
            count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
            if ceil_mode and stride + end > reach:
                if not isinstance(count, int) or not isinstance(extent, int):
                    raise TypeRuleError(f"ceil_mode needs a static extent, not {extent}; give --input-shape")
                count -= (count - 1) * stride >= extent + begin
            if isinstance(count, int) and count < 1:
                raise TypeRuleError(f"a window reaching {reach} does not fit into {extent}+{begin}+{end}")
            found.append(count)
        return tuple(found)

    def needed(self, outputs: Sequence[int]) -> tuple[int, ...]:
        """Extent of the padded input that `outputs` window positions read."""
        return tuple((o - 1) * s + r for o, s, r in zip(outputs, self.strides, self.reach, strict=True))

    def taps(self, padded: Array, outputs: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Array]]:
        """Each offset in the window with the view of `padded` that it reads over all positions."""
        for offset in product(*(range(k) for k in self.kernel)):
            cut = tuple(
                slice(o * d, o * d + (n - 1) * s + 1, s)
                for o, d, n, s in zip(offset, self.dilation, outputs, self.strides, strict=True)
            )
            yield offset, padded[(slice(None), slice(None), *cut)]

    def pad_array(self, array: Array, outputs: Sequence[int], value: float) -> Array:
        """`array` padded with `value`, cut to exactly what the windows read."""
        needed = self.needed(outputs)
        shape = list(array.shape)
        source: list[slice] = [slice(None)] * array.ndim
        target: list[slice] = [slice(None)] * array.ndim
        for axis, (extent, begin) in enumerate(zip(needed, self.begin, strict=True), start=FIRST):
            first, last = max(0, -begin), min(array.shape[axis], extent - begin)
            source[axis], target[axis] = slice(first, last), slice(first + begin, last + begin)
            shape[axis] = extent
        if tuple(shape) == array.shape and not any(self.begin):
            return array
        padded = np.full(shape, value, array.dtype)
        padded[tuple(target)] = array[tuple(source)]
        return padded

    def pad_tensor(self, tensor: Tensor, outputs: Sequence[int], value: Any) -> Tensor:
        """`pad_array` as a tensor expression; `tensor` itself when the windows stay inside."""
        needed = self.needed(outputs)
        extents = [int(e) for e in tensor.shape]
        rank = len(needed)
        spatial = extents[FIRST : FIRST + rank]
        if not any(self.begin) and all(n <= e for n, e in zip(needed, spatial, strict=True)):
            return tensor

        def element(*index: Any) -> Any:
            at = [i - b for i, b in zip(index[FIRST : FIRST + rank], self.begin, strict=True)]
            inside = [c for p, e in zip(at, spatial, strict=True) for c in (p >= 0, p < e)]
            value_there = tensor(*index[:FIRST], *at, *index[FIRST + rank :])
            return tirx.if_then_else(tirx.all(*inside), value_there, value)

        shape = [*extents[:FIRST], *needed, *extents[FIRST + rank :]]
        return te.compute(shape, element, name="padded")

    def axes(self) -> list[Any]:
        """Reduction axes over the taps."""
        return [te.reduce_axis((0, k), name=f"k{i}") for i, k in enumerate(self.kernel)]

    def read(self, position: Sequence[Any], taps: Sequence[Any]) -> list[Any]:
        """Index into the padded input of each tap at window `position`."""
        return [p * s + t * d for p, s, t, d in zip(position, self.strides, taps, self.dilation, strict=True)]
