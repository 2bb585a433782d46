"""What reductions combine elements with, and what they start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.relay.types import FLOATS, numpy_dtype
from tcomp.tensor import math
from tcomp.tvm_api import te, tirx


def lowest(dtype: str) -> float:
    """What is below or equal to every number of `dtype`."""
    return float("-inf") if dtype in FLOATS else int(np.iinfo(numpy_dtype(dtype)).min)


def highest(dtype: str) -> float:
    """What is above or equal to every number of `dtype`."""
    return float("inf") if dtype in FLOATS else int(np.iinfo(numpy_dtype(dtype)).max)


def _reducer(name: str, combine: Callable[[Any, Any], Any], start: Callable[[str], float]) -> Any:
    def identity(dtype: str) -> Any:
        return tirx.const(start(dtype), dtype)

    return te.comm_reducer(combine, identity, name=name)


product = _reducer("product", lambda a, b: a * b, lambda dtype: 1)
largest = _reducer("largest", lambda a, b: tirx.max(a, b), lowest)
"""NaN where an element is."""
smallest = _reducer("smallest", lambda a, b: tirx.min(a, b), highest)
"""NaN where an element is."""
any_largest = _reducer("any_largest", lambda a, b: math.larger(a, b), lowest)
"""As `largest`; with NaN among the elements, any of them. For what is NaN then by a sum, such as softmax."""
