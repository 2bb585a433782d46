"""The best that this machine can do, measured: what kernels are compared with."""

from __future__ import annotations

import ctypes
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from tcomp.codegen.link import SOURCES, compile_c, link
from tcomp.codegen.toolchain import native_toolchain
from tcomp.errors import BuildError
from tcomp.target.host import host_target

_SHARED_BYTES = 64 << 20
"""Of the last-level cache a core may have this much when its neighbours are idle."""
_STEPS = 200_000
_GLANCE_STEPS = 50_000
_READ_BYTES = 64 << 20
_REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """The roofline of `threads` cores together.

    `flops` are float32 operations a second. `levels` are the levels of memory from the nearest: the bytes
    that each holds, the last one any number, and the bytes a second that are read from it.
    """

    threads: int
    flops: float
    levels: tuple[tuple[float, float], ...]

    def move(self, nbytes: int) -> float:
        """Seconds to read or write tensors of `nbytes`, of which each level holds what it can."""
        seconds, below = 0.0, 0.0
        for capacity, rate in self.levels:
            seconds += max(0.0, min(nbytes, capacity) - below) / rate
            below = capacity
        return seconds

    def stream(self, nbytes: int, total: int) -> float:
        """Seconds to read `nbytes` of `total` that are read in turns, from the level that holds them all."""
        return nbytes / next(rate for capacity, rate in self.levels if total <= capacity)


def measure_machine(threads: int = 1) -> Machine:
    """Measure the CPUs this process may use, `threads` of them at once; takes less than a second.

    Raises BuildError when there is no C compiler or no memory.
    """
    first, second, third = host_target().cache_bytes
    sets = ((first, first // 2), (second, second // 2), (_SHARED_BYTES, 4 * third), (inf, 2 * _SHARED_BYTES))
    with tempfile.TemporaryDirectory() as name:
        library = _compile(Path(name))
    flops = _best_rate(threads, lambda _: library.tcomp_machine_multiply_add(_STEPS), [None] * threads)
    levels = [(capacity * threads, _bandwidth(library, threads, n)) for capacity, n in sets]
    return Machine(threads, flops, tuple(levels))


def multiply_add_rate() -> Callable[[], float]:
    """A function that measures how many float32 operations a second this core does now, in 0.1 ms.

    Raises BuildError when there is no C compiler.
    """
    with tempfile.TemporaryDirectory() as name:
        library = _compile(Path(name))

    def rate() -> float:
        begin = time.perf_counter()
        operations = library.tcomp_machine_multiply_add(_GLANCE_STEPS)
        return operations / (time.perf_counter() - begin)

    return rate


def _compile(folder: Path) -> ctypes.CDLL:
    toolchain, target = native_toolchain(), host_target()
    flags = ["-O3", "-march=native", "-ffp-contract=fast", f"-DVECTOR_BYTES={target.vector_bits // 8}"]
    objects = compile_c(toolchain, [SOURCES / "machine.c"], folder, flags)
    link(toolchain, target, objects, folder / "machine.so", folder)
    library = ctypes.CDLL(str(folder / "machine.so"))
    library.tcomp_machine_multiply_add.restype = ctypes.c_double
    library.tcomp_machine_multiply_add.argtypes = (ctypes.c_int64,)
    library.tcomp_machine_allocate.restype = ctypes.c_void_p
    library.tcomp_machine_allocate.argtypes = (ctypes.c_size_t,)
    library.tcomp_machine_release.restype = None
    library.tcomp_machine_release.argtypes = (ctypes.c_void_p,)
    library.tcomp_machine_read.restype = ctypes.c_double
    library.tcomp_machine_read.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
    return library


def _bandwidth(library: ctypes.CDLL, threads: int, nbytes: int) -> float:
    times = max(1, _READ_BYTES // nbytes)
    blocks = [library.tcomp_machine_allocate(nbytes) for _ in range(threads)]
    try:
        if None in blocks:
            raise BuildError(f"no memory to measure its bandwidth: {threads} times {nbytes} bytes are needed")
        return _best_rate(threads, lambda block: library.tcomp_machine_read(block, nbytes, times), blocks)
    finally:
        for block in blocks:
            library.tcomp_machine_release(block)


def _best_rate(threads: int, work: Callable[[Any], float], arguments: Sequence[Any]) -> float:
    """The best sum of the threads' rates, over some repeats in which all start together."""
    barrier = threading.Barrier(threads)

    def rate(argument: Any) -> float:
        barrier.wait()
        begin = time.perf_counter()
        amount = work(argument)
        return amount / (time.perf_counter() - begin)

    with ThreadPoolExecutor(threads) as pool:
        return max(sum(pool.map(rate, arguments)) for _ in range(_REPEATS))
