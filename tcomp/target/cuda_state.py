"""What state a GPU is in while it is measured, by NVIDIA's management library.

Source: NVML API reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import byref, c_uint, c_ulonglong, c_void_p
from functools import cache
from typing import Any

_PROCESSOR_CLOCK = 1
_TEMPERATURE = 0
_HARMLESS = 0x1 | 0x2
"""Reasons for a low clock: nothing runs, or an application set it."""


@cache
def _device() -> tuple[Any, c_void_p] | None:
    """The library and the first GPU, where the driver brings the library."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = c_void_p()
    if library.nvmlInit_v2() != 0 or library.nvmlDeviceGetHandleByIndex_v2(0, byref(handle)) != 0:
        return None
    return library, handle


def gpu_state() -> Mapping[str, str]:
    """Clock, temperature, a warning when heat or power hold the clock down; nothing where nobody tells."""
    found = _device()
    if found is None:
        return {}
    library, handle = found
    state: dict[str, str] = {}
    number, reasons = c_uint(), c_ulonglong()
    if library.nvmlDeviceGetClockInfo(handle, _PROCESSOR_CLOCK, byref(number)) == 0:
        state["clock"] = f"{number.value} MHz"
    if library.nvmlDeviceGetTemperature(handle, _TEMPERATURE, byref(number)) == 0:
        state["temperature"] = f"{number.value} C"
    known = library.nvmlDeviceGetCurrentClocksThrottleReasons(handle, byref(reasons)) == 0
    if known and reasons.value & ~_HARMLESS:
        state["warning"] = "heat or power hold the GPU's clock down, so it runs slower than it can; cool it"
    return state
