"""Detection of the host from made-up and real system files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.jit import build_kernel
from tcomp.errors import TargetError
from tcomp.relay.builder import GraphBuilder
from tcomp.target.host import host_target
from tcomp.tensor.kernel import Kernel

V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe popcnt"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


def cpuinfo(folder: Path, vendor: str, family: int, model: int, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: Some CPU\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nflags\t\t: other\n"
    )
    return path


def cache(folder: Path, index: int, level: int, kind: str, size: str, shared: str) -> None:
    entry = folder / f"index{index}"
    entry.mkdir(parents=True)
    for name, text in (("level", str(level)), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
        (entry / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("vendor", "family", "model", "flags", "name", "isa"),
    [
        ("GenuineIntel", 6, 207, V4, "emeraldrapids", "x86-64-v4"),
        ("GenuineIntel", 6, 63, V3, "haswell", "x86-64-v3"),
        ("AuthenticAMD", 0x19, 0x11, V4, "znver4", "x86-64-v4"),
        ("AuthenticAMD", 0x19, 0x21, V3, "znver3", "x86-64-v3"),
        ("AuthenticAMD", 0x1A, 0x44, V4, "znver5", "x86-64-v4"),
        ("GenuineIntel", 6, 207, V3, "x86-64-v3", "x86-64-v3"),
        ("SomebodyElse", 1, 1, V4, "x86-64-v4", "x86-64-v4"),
    ],
)
def test_recognises(tmp_path: Path, vendor: str, family: int, model: int, flags: str, name: str, isa: str):
    target = host_target(cpuinfo(tmp_path, vendor, family, model, flags), tmp_path)
    assert (target.name, target.isa, target.family) == (name, isa, "cpu")


@pytest.mark.parametrize(
    ("vendor", "family", "model", "flags", "fast_dtype"),
    [
        ("AuthenticAMD", 0x19, 0x11, "avx512_bf16", "bfloat16"),
        ("AuthenticAMD", 0x19, 0x61, "avx512_bf16", "bfloat16"),
        ("AuthenticAMD", 0x19, 0xA0, "avx512_bf16", "bfloat16"),
        ("AuthenticAMD", 0x1A, 0x02, "avx512_bf16", "bfloat16"),
        ("AuthenticAMD", 0x19, 0x11, "", None),
        ("GenuineIntel", 6, 143, "avx512_bf16 avx512_fp16", "float16"),
        ("GenuineIntel", 6, 143, "avx512_bf16", None),
        ("SomebodyElse", 1, 1, "avx512_bf16 avx512_fp16", "float16"),
        ("SomebodyElse", 1, 1, "avx512_bf16", None),
    ],
)
def test_fast_type(tmp_path: Path, vendor: str, family: int, model: int, flags: str, fast_dtype: str | None):
    """AMD's cores multiply bfloat16 faster than float32, others slower; a hidden feature helps nobody."""
    target = host_target(cpuinfo(tmp_path, vendor, family, model, f"{V4} {flags}"), tmp_path)
    assert target.fast_dtype == fast_dtype


def test_switches_hidden_features_off(tmp_path: Path):
    target = host_target(cpuinfo(tmp_path, "GenuineIntel", 6, 143, f"{V4} avx512_bf16"), tmp_path)
    assert "-amx-tile" in target.llvm["mattr"]
    assert "-avx512bf16" not in target.llvm["mattr"]
    assert "-prefer-256-bit" in target.llvm["mattr"]
    assert "avx512bf16" in target.features


def test_reads_caches_of_an_unknown_core(tmp_path: Path):
    caches = tmp_path / "caches"
    cache(caches, 0, 1, "Data", "48K", "0")
    cache(caches, 1, 1, "Instruction", "32K", "0")
    cache(caches, 2, 2, "Unified", "3M", "0-1")
    cache(caches, 3, 3, "Unified", "24576K", "0-3,8-11")
    target = host_target(cpuinfo(tmp_path, "SomebodyElse", 1, 1, V3), caches)
    assert target.cache_bytes == (48 << 10, 3 << 20, 3 << 20)


def test_known_cores_keep_their_share_of_l3(tmp_path: Path):
    caches = tmp_path / "caches"
    cache(caches, 3, 3, "Unified", "266240K", "0-1")
    target = host_target(cpuinfo(tmp_path, "GenuineIntel", 6, 207, V4), caches)
    assert target.cache_bytes == (48 << 10, 2 << 20, 4 << 20)


def test_old_cpus_are_refused(tmp_path: Path):
    with pytest.raises(TargetError, match=r"lacks avx2, .*x86-64-v3"):
        host_target(cpuinfo(tmp_path, "GenuineIntel", 6, 42, V3.replace("avx2 ", "").replace("fma ", "")))


@pytest.mark.parametrize("text", [None, "Processor: ARM\nFeatures: asimd\n"])
def test_unreadable_cpuinfo_is_an_error(tmp_path: Path, text: str | None):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TargetError, match="name a target tag"):
        host_target(path)


def test_the_real_host():
    target = host_target()
    assert target.isa in ("x86-64-v3", "x86-64-v4")
    assert target.cores >= 1
    assert all(size > 0 for size in target.cache_bytes)


def test_code_that_this_cpu_lacks_instructions_for_is_not_run() -> None:
    alien = replace(host_target(), name="alien", features=host_target().features | {"avx9000"})
    builder = GraphBuilder()
    kernel = Kernel(builder.build(builder.op("relu", builder.input("x", (4,)))))
    runner = build_kernel(kernel, alien)
    with pytest.raises(TargetError, match=r"`alien` uses avx9000, which this CPU lacks"):
        runner([np.zeros(4, np.float32)])
