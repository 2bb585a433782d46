"""The GPU of this machine, as a target."""

from __future__ import annotations

import platform
from dataclasses import replace

from tcomp.errors import TargetError
from tcomp.target.cuda import ARCHITECTURES, cuda_target
from tcomp.target.cuda_driver import Attribute, driver
from tcomp.target.target import TARGETS, Gpu, Target

_HOSTS = {"x86_64": "x86-64", "aarch64": "generic"}
_HERTZ = 1e3
_TRANSFERS = 2
"""A clock of device memory."""


def gpu_target() -> Target:
    """The target for the first GPU here: its facts from the driver, its rates from a card like it.

    Raises DeviceError without driver or GPU, TargetError for a GPU that tcomp does not know.
    """
    found = driver()
    major, minor = found.attribute(Attribute.MAJOR), found.attribute(Attribute.MINOR)
    arch = f"sm_{major}{minor}"
    known = next((gpu for gpu in ARCHITECTURES.values() if gpu.capability == 10 * major + minor), None)
    if known is None:
        raise TargetError(
            f"{found.name} has compute capability {major}.{minor} ({arch}); known are "
            f"{', '.join(ARCHITECTURES)}; newer GPUs run what is compiled for `cuda:sm_90`"
        )
    processors = found.attribute(Attribute.PROCESSORS)
    gpu = replace(
        known,
        processors=processors,
        block_shared_bytes=found.attribute(Attribute.BLOCK_SHARED_BYTES),
        shared_bytes=found.attribute(Attribute.SHARED_BYTES),
        threads=found.attribute(Attribute.THREADS),
        l2_bytes=found.attribute(Attribute.L2_BYTES),
        registers=found.attribute(Attribute.REGISTERS),
        bytes_per_second=_bandwidth(known),
        flops={dtype: rate * processors / known.processors for dtype, rate in known.flops.items()},
    )
    machine = platform.machine()
    host = {"kind": "llvm", "mcpu": _HOSTS[machine], "mtriple": f"{machine}-unknown-linux-gnu"}
    name = next((n for n, t in TARGETS.items() if t.gpu == gpu and n.startswith("nvidia/")), f"cuda:{arch}")
    return cuda_target(name, gpu, found.name, host)


def require_gpu(gpu: Gpu, name: str) -> None:
    """Raise TargetError when the GPU here cannot run code for `gpu`, DeviceError when there is none.

    `name` is the target's, for the message.
    """
    found = driver()
    major, minor = found.attribute(Attribute.MAJOR), found.attribute(Attribute.MINOR)
    if not gpu.runs_on(10 * major + minor):
        raise TargetError(
            f"code for target `{name}` is for {gpu.arch}, and {found.name} has compute capability "
            f"{major}.{minor}; name the target `cuda`, or compile here and run there"
        )


def _bandwidth(known: Gpu) -> float:
    """Bytes a second by clock and bus; newer drivers hide the clock, and the known card's stand in."""
    found = driver()
    clock, bits = found.attribute(Attribute.MEMORY_CLOCK_KHZ), found.attribute(Attribute.BUS_BITS)
    return clock * _HERTZ * _TRANSFERS * bits / 8 if clock else known.bytes_per_second
