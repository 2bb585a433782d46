"""The transforms of Winograd convolution as statements: down the columns of a tile, then along its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tcomp.tensor.loops import (
    Expression,
    Statement,
    local,
    sequence,
    unrolled,
    vectorized,
)
from tcomp.tensor.winograd.filtering import Keep, Scheme
from tcomp.tvm_api import tirx

Along = Callable[[Sequence[Expression], Keep], "list[Expression]"]
"""A transform of values in a row."""
Load = Callable[[Expression, Expression, Expression], Expression]
"""A value by row, column and lane."""
Store = Callable[[Expression, Expression, Expression, Expression], Statement]
"""By row, column and lane, and the value."""


def transform_inputs(
    scheme: Scheme, dtype: str, load: Load, store: Store, lanes: int = 1, first: Expression = 0
) -> Statement:
    """`B^T d B` of a patch: as many values as inputs, for `lanes` channels from `first` on."""
    both = scheme.down.transform_input, scheme.across.transform_input
    return _transform(scheme, both, scheme.down.size, dtype, lanes, first, load, store)


def transform_outputs(
    scheme: Scheme, dtype: str, load: Load, store: Store, lanes: int = 1, first: Expression = 0
) -> Statement:
    """`A^T m A` of the products of a tile: its pixels. Otherwise as `transform_inputs`."""
    both = scheme.down.transform_output, scheme.across.transform_output
    return _transform(scheme, both, scheme.down.outputs, dtype, lanes, first, load, store)


def _transform(
    scheme: Scheme,
    transforms: tuple[Along, Along],
    results: int,
    dtype: str,
    lanes: int,
    first: Expression,
    load: Load,
    store: Store,
) -> Statement:
    """The first of `transforms` down the columns of `load(row, column, lane)`, the other one along the
    `results` rows of what that makes."""
    height, width = scheme.down.size, scheme.across.size
    allocate, half = local((results, width, lanes), dtype, "half")

    def along(
        transform: Along,
        size: int,
        values: Callable[[int, Expression], Expression],
        keep_result: Callable[[int, Expression, Expression], Statement],
    ) -> Statement:
        allocate_kept, kept = local((2 * size, lanes), dtype, "kept")

        def body(lane: Expression) -> Statement:
            statements: list[Statement] = []

            def keep(value: Expression) -> Expression:
                place = [len(statements), lane]
                statements.append(tirx.BufferStore(kept, value, place))
                return tirx.BufferLoad(kept, place)

            loaded = [keep(values(k, lane)) for k in range(size)]
            for k, value in enumerate(transform(loaded, keep)):
                statements.append(keep_result(k, lane, value))
            return sequence(statements)

        return sequence([allocate_kept, vectorized(lanes, body)])

    def columns(j: Expression) -> Statement:
        return along(
            transforms[0],
            height,
            lambda k, lane: load(k, j, first + lane),
            lambda k, lane, value: tirx.BufferStore(half, value, [k, j, lane]),
        )

    def rows(i: Expression) -> Statement:
        return along(
            transforms[1],
            width,
            lambda k, lane: tirx.BufferLoad(half, [i, k, lane]),
            lambda k, lane, value: store(i, k, first + lane, value),
        )

    return sequence([allocate, unrolled(width, columns), unrolled(results, rows)])
