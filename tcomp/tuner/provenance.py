"""Where and with what a record was made."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache

import tcomp
from tcomp.target.host import cpu_name
from tcomp.target.target import Target
from tcomp.tvm_api import tvm


@lru_cache(maxsize=1)
def device_name() -> str:
    """The CPU's model, exact enough to tell machines apart behind which a hypervisor hides the name."""
    return cpu_name()


def simulated_device(target: Target) -> str:
    """The device of records that are estimates for the target's core."""
    return f"simulated {target.llvm['mcpu']}"


@lru_cache(maxsize=1)
def tool_versions() -> dict[str, str]:
    """The versions that decide what code a config becomes."""
    return {"tcomp": tcomp.__version__, "tvm": str(tvm.__version__)}


def now() -> str:
    """UTC in ISO 8601, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
