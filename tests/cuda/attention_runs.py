"""Attention by one template and config, run and compared with the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from test_attention_cuda import arrays_of

from tcomp.codegen.jit import build_scheduled
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import TEMPLATES

TOLERANCE = {"float32": 4e-6, "float16": 2e-3, "bfloat16": 1.2e-2}


def built(
    template: str, kernel: Kernel, config: dict[str, int], target: Target
) -> Callable[[list[Array]], list[Array]]:
    assert TEMPLATES[template].accepts(kernel, target)
    TEMPLATES[template].space(kernel, target).check(config)
    return build_scheduled(kernel, TEMPLATES[template].apply(kernel, target, config), target)


def assert_near(found: Array, expected: Array, tolerance: float) -> None:
    wide = expected.astype(np.float64)
    assert np.isfinite(wide).all()
    assert np.abs(found.astype(np.float64) - wide).max() <= tolerance * max(1.0, np.abs(wide).max())


def assert_matches(
    template: str, kernel: Kernel, config: dict[str, int], target: Target, arrays: list[Array] | None = None
) -> None:
    """Of random arrays, where none are given."""
    arrays = arrays_of(kernel) if arrays is None else arrays
    (found,), (expected,) = built(template, kernel, config, target)(arrays), evaluate(kernel.body, arrays)
    assert found.dtype == expected.dtype
    assert_near(found, expected, TOLERANCE[kernel.body.inputs[0].dtype])
