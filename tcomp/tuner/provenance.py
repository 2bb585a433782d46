"""Where and with what a record was made."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache

import tcomp
from tcomp.codegen.cuda.cubin import find_compiler
from tcomp.errors import DeviceError
from tcomp.target.cuda_driver import driver
from tcomp.target.host import cpu_name
from tcomp.target.target import Target
from tcomp.tvm_api import tvm


@lru_cache(maxsize=8)
def device_name(target: Target) -> str:
    """The model of the CPU or GPU here that runs code for `target`; the target's name where there is none.

    It is exact enough to tell machines apart behind which a hypervisor hides the name.
    """
    if target.gpu is None:
        return cpu_name()
    try:
        return driver().name
    except DeviceError:
        return target.name


def simulated_device(target: Target) -> str:
    """The device of records that are estimates for the target's core."""
    return f"simulated {target.llvm['mcpu']}"


@lru_cache(maxsize=8)
def tool_versions(target: Target) -> dict[str, str]:
    """The versions that decide what code a config becomes."""
    compiler = {} if target.gpu is None else {"cuda": find_compiler().version}
    return {"tcomp": tcomp.__version__, "tvm": str(tvm.__version__), **compiler}


def now() -> str:
    """UTC in ISO 8601, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
