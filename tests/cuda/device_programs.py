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

_COPY = """
#ifndef __CUDACC_RTC__
#include <cuda.h>
#endif
#include "tcomp_wgmma.cuh"
#include "tcomp_windows.cuh"
extern "C" __global__ void kernel(const char *tensor, unsigned *lines,
                                  const __grid_constant__ CUtensorMap map) {{
  extern __shared__ __align__(64) char memory[];
  unsigned barrier = tcomp_shared_begin(memory), tile = barrier + 1024;
  const unsigned *words = (const unsigned *)(memory + (tile - (unsigned)__cvta_generic_to_shared(memory)));
  if (threadIdx.x == 0) {{
    tcomp_barrier_init(barrier, 1);
    tcomp_barriers_are_ready();
    tcomp_barrier_expect(barrier, {nbytes});
    {copy}(tile, (unsigned long long)&map, barrier, {at});
  }}
  __syncthreads();
  tcomp_barrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < {nbytes} / 4; i += 32) lines[i] = words[i];
}}
"""


def copying(copy: str, at: Sequence[int], nbytes: int) -> str:
    """The source of a kernel that has the copy engine bring a tile of so many bytes, which is `at` a place of
    a map, by the function `copy`, and stores it as words."""
    return _COPY.format(copy=copy, at=", ".join(map(str, at)), nbytes=nbytes)


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
