"""List the targets, or show all facts of some.

A target is named by its tag wherever `--target` goes; `llvm` is the CPU that tcomp runs on, `cuda` its GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from tcomp.target.host import host_target
from tcomp.target.parse import parse_target
from tcomp.target.target import TARGETS, Gpu, Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="TARGET", help="show these in full")
    parser.add_argument("--host", action="store_true", help="show the target that `llvm` means here, in full")


def run(arguments: argparse.Namespace) -> int:
    shown = [parse_target(name) for name in arguments.names]
    if arguments.host:
        shown.insert(0, host_target())
    if shown:
        print("\n\n".join(map(facts, shown)))
        return 0
    width = max(len(name) for name in TARGETS)
    for name, target in TARGETS.items():
        print(f"{name:{width}}  {target.isa:{width}}  {target.description}")
    return 0


def facts(target: Target) -> str:
    """All facts of a target, one a line."""
    own = _cpu_facts(target) if target.gpu is None else _gpu_facts(target.gpu)
    rows = {
        "name": target.name,
        "isa": target.isa,
        "llvm": " ".join(f"{k}={v}" for k, v in target.llvm.items()),
        "fast": f"products in {target.fast_dtype or 'float32'}",
        **own,
        "description": target.description,
    }
    return "\n".join(f"{key:15} {value}" for key, value in rows.items())


def _cpu_facts(target: Target) -> Mapping[str, str]:
    l1, l2, l3 = (f"{size // 1024} KiB" for size in target.cache_bytes)
    return {
        "vectors": f"{target.vector_registers} registers of {target.vector_bits} bits",
        "FMA ports": str(target.fma_ports),
        "caches": f"L1 {l1}, L2 {l2}, L3 {l3}",
        "cores": str(target.cores),
        "features": " ".join(sorted(target.features)),
    }


def _gpu_facts(gpu: Gpu) -> Mapping[str, str]:
    rates = {dtype: f"{rate / 1e12:g} TFLOP/s" for dtype, rate in gpu.flops.items()}
    block = f"{gpu.block_shared_bytes // 1024} KiB a block"
    return {
        "multiprocessors": str(gpu.processors),
        "threads": f"{gpu.threads} a multiprocessor, {gpu.block_threads} a block, {gpu.warp} a warp",
        "registers": f"{gpu.registers} a multiprocessor, {gpu.thread_registers} a thread, of 32 bits",
        "shared memory": f"{gpu.shared_bytes // 1024} KiB a multiprocessor, {block}",
        "L2": f"{gpu.l2_bytes / 2**20:g} MiB",
        "memory": f"{gpu.bytes_per_second / 1e9:g} GB/s",
        "plain float32": rates.pop("float32"),
        "tensor cores": ", ".join(f"{dtype} {rate}" for dtype, rate in rates.items()),
    }
