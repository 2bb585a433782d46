"""Kernels of a GPU are timed by its own events, the host being ahead of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_kernels import kernel

from tcomp.codegen.cuda.jit import build_cuda, flush_seconds
from tcomp.target.cuda_driver import Driver
from tcomp.target.target import Target
from tcomp.tensor.selection import schedule


def test_nothing_but_launches_between_the_events(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are encoded before, memory is being filled meanwhile, for longer than the calls take."""
    product = kernel("matmul", (64, 128), (128, 128), dtype="float16")
    runner = build_cuda(product, schedule(product, gpu), gpu)
    rng = np.random.default_rng(0)
    arguments = runner.prepare([rng.standard_normal(s).astype(np.float16) for s in ((64, 128), (128, 128))])
    called: list[str] = []
    call = Driver.call

    def noting(self: Driver, function: str, *given: object) -> None:
        called.append(function)
        call(self, function, *given)

    monkeypatch.setattr(Driver, "call", noting)
    assert all(seconds > 0 for seconds in runner.clock_prepared(arguments, 1))
    first = called.index("cuEventRecord")
    launches = ["cuLaunchKernel"] * len(arguments.launches)
    assert called[first:] == [
        "cuEventRecord",
        *launches,
        "cuEventRecord",
        "cuEventSynchronize",
        "cuEventElapsedTime",
    ]
    fills = called.count("cuMemsetD8Async")
    assert fills >= 1
    assert gpu.gpu is not None
    assert runner.rest_seconds > fills * flush_seconds(gpu.gpu) >= 60e-6


def test_small_caches_are_filled_more_often(gpu: Target) -> None:
    assert gpu.gpu is not None
    product = kernel("relu", (64,))
    small = replace(gpu, gpu=replace(gpu.gpu, l2_bytes=1 << 20, bytes_per_second=1e12))
    runner = build_cuda(product, schedule(product, small), small)
    assert runner._fills == 29  # pyright: ignore[reportPrivateUsage]
