"""Each thread has a current context of its own: not only the one that loads the driver calls it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcomp.codegen.cuda.jit import Memory
from tcomp.relay.types import Array, TensorType
from tcomp.target.cuda_driver import driver


@pytest.mark.usefixtures("gpu")
def test_other_threads_call_the_driver() -> None:
    numbers = np.arange(5, dtype=np.int32)

    def copied() -> Array:
        memory = Memory(driver(), TensorType((5,), "int32"))
        memory.write(numbers)
        driver().synchronize()
        return memory.read()

    np.testing.assert_array_equal(copied(), numbers)
    with ThreadPoolExecutor(1) as other:
        np.testing.assert_array_equal(other.submit(copied).result(), numbers)
