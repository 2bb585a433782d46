"""Libraries of models in which sums have no terms, or batches no rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from no_elements import GRAPHS, inputs_and_outputs

from tcomp import api
from tcomp.codegen.jit import build_kernel
from tcomp.errors import UnsupportedError
from tcomp.runtime import load
from tcomp.target.host import host_target
from tcomp.tensor.kernel import Kernel


@pytest.mark.parametrize("name", GRAPHS)
def test_equals_the_reference(name: str, tmp_path: Path) -> None:
    api.compile(GRAPHS[name], tmp_path / "model.so")
    arrays, expected = inputs_and_outputs(GRAPHS[name])
    for found, wanted in zip(load(tmp_path / "model.so", threads=1)(**arrays), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_kernels_take_no_operands_without_elements() -> None:
    with pytest.raises(UnsupportedError, match=r"operand `a` .*without elements; pass `fold-constants`"):
        build_kernel(Kernel(GRAPHS["product of depth 0"]), host_target())
