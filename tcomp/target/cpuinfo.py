"""What Linux says about the CPUs of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tcomp.errors import TargetError

CPUINFO = Path("/proc/cpuinfo")


def read_processors(path: Path = CPUINFO) -> Sequence[Mapping[str, str]]:
    """The fields of each processor of Linux's `/proc/cpuinfo`; at least one.

    Raises TargetError when the file is missing or lists none.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise TargetError(
            f"cannot read {path} ({error.strerror}); name a target tag instead of `llvm`"
        ) from None
    found = [_fields(block) for block in text.split("\n\n")]
    processors = [fields for fields in found if "processor" in fields]
    if not processors:
        raise TargetError(f"{path} lists no processor; name a target tag instead of `llvm`")
    return processors


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
