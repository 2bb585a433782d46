"""Each thread has a current context of its own: not only the one that loads the driver calls it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, byref, c_void_p

import numpy as np
import pytest

from tcomp.codegen.cuda.jit import Memory
from tcomp.relay.types import Array, TensorType
from tcomp.target.cuda_driver import LIBRARY, driver
from tcomp.target.target import Target


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


@pytest.mark.emulated
def test_the_context_of_a_caller_stays(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where PyTorch has made its second device current."""
    monkeypatch.setenv("EMULATED_DEVICES", "2")
    called = driver()

    def context_afterwards() -> tuple[int | None, int | None]:
        mine, current = c_void_p(), c_void_p()
        library = CDLL(LIBRARY)
        library.cuDevicePrimaryCtxRetain(byref(mine), 1)
        library.cuCtxSetCurrent(mine)
        called.synchronize()
        library.cuCtxGetCurrent(byref(current))
        return mine.value, current.value

    with ThreadPoolExecutor(1) as other:
        mine, current = other.submit(context_afterwards).result()
    assert mine == current == 2
