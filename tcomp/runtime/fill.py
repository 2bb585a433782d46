"""Input arrays made up for running, timing and checking a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tcomp.runtime.library import numpy_dtype

FILLS = ("random", "zeros", "ones")


def fill(
    shape: Sequence[int], dtype: str, how: str = "random", rng: np.random.Generator | None = None
) -> npt.NDArray[Any]:
    """An array of `shape` and `dtype`.

    `random` is standard normal for floating point and 0 or 1 for integers and booleans, which suits token
    numbers, masks and token types alike whatever the size of the table they index.
    """
    numpy_type = numpy_dtype(dtype)
    if how != "random":
        return np.full(tuple(shape), 1 if how == "ones" else 0, numpy_type)
    rng = rng or np.random.default_rng(0)
    if numpy_type.kind in "iub":
        return rng.integers(0, 2, tuple(shape)).astype(numpy_type)
    return rng.standard_normal(tuple(shape), np.float32).astype(numpy_type)
