"""Running kernels of `gpu_kernels/`, which count the cycles that they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from tcomp.codegen.cuda.cubin import compile_cubin
from tcomp.codegen.cuda.jit import Memory, flush_bytes
from tcomp.errors import BuildError, KernelError
from tcomp.relay.types import Array, TensorType
from tcomp.target.cuda_driver import Driver, LaunchCall, driver
from tcomp.target.target import Gpu
from tcomp.target.tile_map import TileMap

KERNELS = Path(__file__).parent / "gpu_kernels"
TILE = 1 << 16
"""Bytes that a block of `read.cu` reads in a step; those of copies take a quarter."""


@dataclass(frozen=True)
class Sizes:
    """How much is done: `steps` of loops, at most `blocks` and `memory_bytes`, `nodes` of graphs."""

    steps: int
    blocks: int
    memory_bytes: int
    nodes: int


FULL = Sizes(steps=2000, blocks=1 << 16, memory_bytes=2 << 30, nodes=100)
SMALL = Sizes(steps=3, blocks=2, memory_bytes=1 << 21, nodes=3)
"""For a GPU that a CPU emulates."""


@dataclass(frozen=True)
class Counted:
    """Of one launch: cycles of each block's loop, seconds by events around it, and what it left in `out`."""

    cycles: Array
    seconds: float
    out: Array

    @property
    def typical(self) -> float:
        return float(np.median(self.cycles))


class CountingMachine:
    """The GPU, and kernels on it that count their cycles."""

    def __init__(self, gpu: Gpu, sizes: Sizes) -> None:
        self.gpu, self.sizes = gpu, sizes
        self.device: Driver = driver()
        self.begin, self.end = self.device.event(), self.device.event()

    @property
    def blocks(self) -> int:
        """One for each multiprocessor."""
        return min(self.gpu.processors, self.sizes.blocks)

    @property
    def near_bytes(self) -> int:
        """What both halves of the second-level cache hold beside other things."""
        return min(self.gpu.l2_bytes // 8, self.sizes.memory_bytes) // TILE * TILE

    @property
    def far_bytes(self) -> int:
        """What the second-level cache holds little of."""
        return min(max(32 * self.gpu.l2_bytes, 1 << 28), self.sizes.memory_bytes) // TILE * TILE

    # Running

    @cache  # noqa: B019 (one machine lives as long as its process)
    def function(self, name: str, shared_bytes: int = 0, **words: Any) -> c_void_p:
        """The kernel of a file, in which `words` stand for those with a dollar."""
        cubin = compile_cubin(source(name, **words), self.gpu.arch)
        if any(taken.spilled_bytes for taken in cubin.resources.values()) or cubin.losses:
            raise BuildError(f"{name}.cu spills, or products wait for each other: {cubin.losses}")
        return self.device.function(self.device.load(cubin.image), "kernel", shared_bytes)

    def memory(self, array: Array) -> Memory:
        found = Memory(self.device, TensorType(array.shape, str(array.dtype)))
        found.write(array)
        return found

    def call(
        self, function: c_void_p, blocks: int, threads: int, shared_bytes: int,
        pointers: Sequence[int], maps: Sequence[tuple[int, TileMap]] = (),
    ) -> LaunchCall:  # fmt: skip
        return self.device.launch(function, (blocks, 1, 1), (threads, 1, 1), shared_bytes, pointers, maps)

    def seconds(self, start: Callable[[c_void_p | None], None], stream: c_void_p | None = None) -> float:
        """Of what `start` starts in `stream`, by events; the device is busy while the host is at it."""
        self.device.synchronize()
        if stream is None:
            self._flush.fill()
        self.begin.record(stream)
        start(stream)
        self.end.record(stream)
        return self.end.seconds_since(self.begin)

    @cached_property
    def _flush(self) -> Memory:
        nbytes = min(flush_bytes(self.gpu), self.sizes.memory_bytes)
        return Memory(self.device, TensorType((nbytes,), "uint8"))

    def count(
        self, name: str, given: Memory, steps: Sequence[int], out: TensorType, *, threads: int,
        blocks: int = 0, shared_bytes: int = 0, maps: Sequence[tuple[int, TileMap]] = (), warm: bool = True,
        **words: Any,
    ) -> Counted:  # fmt: skip
        """What a kernel of `gpu_kernels/` takes; run once before, if `warm`."""
        blocks = blocks or self.blocks
        cycles = Memory(self.device, TensorType((blocks,), "int64"))
        result, numbers = Memory(self.device, out), self.memory(np.array([*steps, 0, 0, 0], np.int32))
        pointers = [given.pointer, numbers.pointer, cycles.pointer, result.pointer]
        function = self.function(name, shared_bytes, **words)
        call = self.call(function, blocks, threads, shared_bytes, pointers, maps)
        if warm:
            call.start()  # It keeps the device busy while the host starts what is timed.
            self.begin.record()
            call.start()
            self.end.record()
            seconds = self.end.seconds_since(self.begin)
        else:
            seconds = self.seconds(call.start)
        return Counted(cycles.read(), seconds, result.read())

    def numbered(self, nbytes: int) -> Memory:
        """Memory whose words of 32 bits count themselves."""
        found = Memory(self.device, TensorType((nbytes // 4,), "uint32"))
        numbers = self.memory(np.array([nbytes // 16, 0, 0, 0], np.int32))
        pointers = [numbers.pointer, numbers.pointer, numbers.pointer, found.pointer]
        self.call(self.function("number"), 4 * self.blocks, 512, 0, pointers).start()
        self.device.synchronize()
        return found


def source(name: str, **words: Any) -> str:
    """CUDA C of a kernel of `gpu_kernels/`."""
    text = (KERNELS / f"{name}.cu").read_text()
    return (KERNELS / "counting.cuh").read_text() + Template(text).substitute(
        {k: str(v) for k, v in words.items()}
    )


def require(what: str, found: Any, expected: Any) -> None:
    """Raise KernelError where `found` differs from what is expected of all or of each."""
    if not np.array_equal(found, np.broadcast_to(expected, np.shape(found))):
        raise KernelError(f"wrong results of {what}")
