"""Kernels written by hand, run on the emulated GPU: for tests of single instructions."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence

import numpy as np

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.jit import Memory
from tcomp.relay.types import Array, TensorType
from tcomp.target.cuda_driver import driver
from tcomp.target.tile_map import TileMap


def run(
    source: str,
    arrays: Sequence[Array],
    outputs: Sequence[Array],
    *,
    arch: str = "sm_80",
    threads: int = 32,
    blocks: int = 1,
    shared_bytes: int = 0,
    maps: Sequence[tuple[int, TileMap]] = (),
) -> list[Array]:
    """The outputs, which begin as they are given, of `kernel` in `source`."""
    memories: list[Memory] = []
    for array in [*arrays, *outputs]:
        memories.append(Memory(driver(), TensorType(array.shape, array.dtype.name)))
        memories[-1].write(array)
    module = driver().load(compile_cubin(source, arch).image)
    function = driver().function(module, "kernel", shared_bytes)
    pointers = [m.pointer for m in memories]
    driver().launch(function, (blocks, 1, 1), (threads, 1, 1), shared_bytes, pointers, maps).start()
    driver().synchronize()
    return [m.read() for m in memories[len(arrays) :]]


def dies(source: str, *arguments: object, **options: object) -> bool:
    """Whether the emulated GPU ends the process that runs this; it says why on standard error."""
    return ends_the_process(lambda: run(source, *arguments, **options))  # pyright: ignore


def ends_the_process(program: Callable[[], object]) -> bool:
    """Whether the emulated GPU ends the process that runs `program`; it says why on standard error."""
    process = multiprocessing.get_context("fork").Process(target=program)
    process.start()
    process.join()
    return process.exitcode != 0


def small_integers(shape: tuple[int, ...], seed: int) -> Array:
    """Numbers whose products add up exactly."""
    return np.random.default_rng(seed).integers(-4, 5, shape)
