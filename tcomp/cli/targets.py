"""List the targets, or show the facts of this machine.

A target is named by its tag wherever `--target` goes; `llvm` is the CPU that tcomp runs on.
"""

from __future__ import annotations

import argparse

from tcomp.target.host import host_target
from tcomp.target.target import TARGETS, Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", action="store_true", help="show the target that `llvm` means here, in full")


def run(arguments: argparse.Namespace) -> int:
    if arguments.host:
        print(facts(host_target()))
        return 0
    width = max(len(name) for name in TARGETS)
    for name, target in TARGETS.items():
        print(f"{name:{width}}  {target.isa:{width}}  {target.description}")
    return 0


def facts(target: Target) -> str:
    """All facts of a target, one a line."""
    l1, l2, l3 = (f"{size // 1024} KiB" for size in target.cache_bytes)
    rows = {
        "name": target.name,
        "isa": target.isa,
        "llvm": " ".join(f"{k}={v}" for k, v in target.llvm.items()),
        "vectors": f"{target.vector_registers} registers of {target.vector_bits} bits",
        "FMA ports": str(target.fma_ports),
        "fast": f"products in {target.fast_dtype or 'float32'}",
        "caches": f"L1 {l1}, L2 {l2}, L3 {l3}",
        "cores": str(target.cores),
        "features": " ".join(sorted(target.features)),
        "description": target.description,
    }
    return "\n".join(f"{key:12} {value}" for key, value in rows.items())
