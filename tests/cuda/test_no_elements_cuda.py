"""Libraries for GPUs of models in which sums have no terms, or batches no rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from no_elements import GRAPHS, inputs_and_outputs

from tcomp import api
from tcomp.runtime import load
from tcomp.target.target import Target


@pytest.mark.parametrize("name", ["product of depth 0", "product of no rows", "reductions"])
def test_equals_the_reference(name: str, gpu: Target, tmp_path: Path) -> None:
    api.compile(GRAPHS[name], tmp_path / "model.so", gpu)
    arrays, expected = inputs_and_outputs(GRAPHS[name])
    for found, wanted in zip(load(tmp_path / "model.so")(**arrays), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
