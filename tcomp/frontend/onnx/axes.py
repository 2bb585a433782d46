"""Axes and shapes: helpers that many converters share."""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.context import SHAPE_REMEDY, Context
from tcomp.relay.dims import Dim, product
from tcomp.relay.graph import Value


def normalise_axis(axis: int, x: Value, extra: int = 0) -> int:
    """`axis` of `x` counted from the front; `extra` more axes are allowed (unsqueeze, one-hot).

    Raises ModelError when it is outside the rank.
    """
    rank = x.type.rank + extra
    if not -rank <= axis < rank:
        raise ModelError(f"axis {axis} is outside {x.type}, whose axes are {-rank} to {rank - 1}")
    return axis % rank


def normalise_axes(axes: Sequence[int], x: Value, extra: int = 0) -> tuple[int, ...]:
    """Distinct axes counted from the front, in the order given."""
    normal = tuple(normalise_axis(a, x, extra) for a in axes)
    if len(set(normal)) != len(normal):
        raise ModelError(f"axes {list(axes)} name an axis of {x.type} twice")
    return normal


def static_dim(x: Value, axis: int, what: str) -> int:
    """The size of one axis.

    Raises UnsupportedError when it is symbolic.
    """
    size = x.shape[axis]
    if not isinstance(size, int):
        raise UnsupportedError(
            f"{what} (axis {axis} of {x.type}) must be known at compile time; {SHAPE_REMEDY}"
        )
    return size


def trailing_size(x: Value, axis: int) -> Dim:
    """Number of elements of the axes from `axis` on."""
    return product(x.shape[axis:])


def broadcast_dims(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape numpy broadcasting gives; a symbol meets only 1 or itself.

    Raises ModelError when the shapes do not broadcast.
    """
    rank = max(len(s) for s in shapes)
    result: list[Dim] = [1] * rank
    for shape in shapes:
        for i, dim in enumerate(shape, start=rank - len(shape)):
            if result[i] == 1:
                result[i] = dim
            elif dim not in (1, result[i]):
                shown = " and ".join(str(list(s)) for s in shapes)
                raise ModelError(f"shapes {shown} do not broadcast")
    return tuple(result)


def squeeze(ctx: Context, x: Value, axes: Sequence[int]) -> Value:
    return ctx.reshape(x, [d for i, d in enumerate(x.shape) if i not in axes])


def unsqueeze(ctx: Context, x: Value, axes: Sequence[int]) -> Value:
    """Insert axes of size 1 at `axes`, counted in the result."""
    old = iter(x.shape)
    return ctx.reshape(x, [1 if i in axes else next(old) for i in range(x.type.rank + len(axes))])
