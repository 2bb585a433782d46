"""Facts that cannot be measured, each in its way, for a process of `gpu_facts.measure`."""

from __future__ import annotations

import os
import time

import gpu_facts
from gpu_facts import Assumed, Fact
from gpu_measure import Machine
from tcomp.errors import KernelError


def breaks_off(machine: Machine) -> float:
    raise KernelError("cuCtxSynchronize: an illegal memory access was encountered (CUDA error 700)")


def ends(machine: Machine) -> float:
    os.abort()


def hangs(machine: Machine) -> float:
    time.sleep(1000)
    return 0.0


FACTS = (
    Fact("breaks off", "cycles", breaks_off),
    Fact("ends", "cycles", ends),
    Fact("hangs", "cycles", hangs),
    Fact("works", "us", lambda machine: 3e-6, Assumed("here", lambda gpu: 2e-6), 1e6),
)


def work() -> None:
    """What the process runs."""
    gpu_facts.work(FACTS)
