"""Random kernels in random configs compute what the reference does, on an emulated GPU.

`pytest tests/cuda/test_random_kernels.py --seeds 1000:1400` looks at others.
"""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from random_kernels import random_case

from tcomp.codegen.jit import build_scheduled
from tcomp.relay.evaluate import evaluate
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import TEMPLATES

TOLERANCE = {"float32": 5e-6, "float16": 4e-3, "bfloat16": 1.6e-2, "int32": 0.0}
TF32 = 2e-3
MOST = 256
"""Blocks of more threads, and tiles of more elements a side, take the emulated GPU long: rather others."""


def tolerance(kernel: Kernel) -> float:
    """Of the largest output."""
    assert kernel.anchor is not None
    rounds = kernel.anchor.attrs.get("multiply_as") == "tf32"
    return TF32 if rounds else TOLERANCE[kernel.body.outputs[0].dtype]


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_numbers(kernel_seed: int) -> None:
    random = Random(kernel_seed)
    arch, kernel, arrays_of = random_case(random)
    target = TARGETS[f"cuda:{arch}"]
    chosen = template_for(kernel, target)
    template = TEMPLATES[random.choice(tuple(chosen.algorithms) or (chosen.name,))]
    space = template.space(kernel, target)
    drawn = [space.random(random) for _ in range(50)]
    config = next((c for c in drawn if all(isinstance(v, str) or v < MOST for v in c.values())), drawn[0])
    print(arch, template.id, config, kernel.key)
    arrays = arrays_of(kernel)
    scheduled = template.apply(kernel, target, space.complete(config))
    (found,), (expected,) = build_scheduled(kernel, scheduled, target)(arrays), evaluate(kernel.body, arrays)
    assert found.dtype == expected.dtype
    wide = expected.astype(np.float64)
    assert np.isfinite(wide).all()
    largest = max(1.0, np.abs(wide).max())
    assert np.abs(found.astype(np.float64) - wide).max() <= tolerance(kernel) * largest
