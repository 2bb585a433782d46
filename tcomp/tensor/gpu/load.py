"""How much of a GPU a kernel takes, and for how long, coarsely: enough to tell what may run beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tcomp.target.target import Gpu
from tcomp.tensor.gpu.rates import LAUNCH_CYCLES, clock, memory_cycles
from tcomp.tensor.gpu.threads import grid_and_block, launches_of
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.product import factor_dtype
from tcomp.tensor.template import Scheduled


@dataclass(frozen=True)
class Load:
    """Cycles that work takes alone, and the share of the device's rate, at most 1, that it has meanwhile."""

    cycles: float
    share: float


def load_of(kernel: Kernel, scheduled: Scheduled, gpu: Gpu) -> Load:
    """The load of a kernel: multiprocessors idle while it begins, and where there is no block for them.

    Those with a block work at the rate of data sheets. Of launches, the one with the most blocks counts.
    """
    launches = launches_of(scheduled.function)
    blocks = max(prod(grid_and_block(one)[0]) for one in launches)
    busy = min(1.0, blocks / gpu.processors)
    dtype = factor_dtype(kernel) if kernel.anchor is not None else "float32"
    rate = gpu.flops.get(dtype, gpu.flops["float32"])
    flops = kernel.flops if scheduled.flops is None else scheduled.flops
    work = max(flops * clock(gpu) / rate, memory_cycles(gpu, kernel.nbytes))
    return _load(LAUNCH_CYCLES * len(launches), work / busy, work)


def copy_load(nbytes: int, gpu: Gpu) -> Load:
    """The load of a copy within the device's memory."""
    moving = memory_cycles(gpu, 2 * nbytes)
    return _load(LAUNCH_CYCLES, moving, moving)


def _load(begin: float, cycles: float, at_full_rate: float) -> Load:
    return Load(begin + cycles, at_full_rate / (begin + cycles))
