"""Detection of ARM machines from files as Linux writes them there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcomp.target.arm_host import arm_host
from tcomp.target.cpuinfo import read_processors
from tcomp.target.host import cpu_name, host_target

A76 = "fp asimd aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CPUS = len(os.sched_getaffinity(0))


def cpuinfo(folder: Path, *cores: tuple[int, str], maker: int = 0x41) -> Path:
    """A file with a processor for each part number and its features, and what boards add at the end."""
    path = folder / "cpuinfo"
    blocks = [
        f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: {maker:#x}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {part:#x}\nCPU revision\t: 1\n"
        for i, (part, features) in enumerate(cores)
    ]
    path.write_text("\n".join([*blocks, "Revision\t: d04170\nModel\t\t: Some Board\n"]))
    return path


def test_a_board_is_its_core(tmp_path: Path) -> None:
    path = cpuinfo(tmp_path, (0xD0B, A76), (0xD0B, A76))
    target = host_target(path, machine="aarch64")
    assert target.name == "arm64-linux+cortex-a76"
    assert target.isa == "armv8.2-a"
    assert target.cores == min(2, CPUS)
    assert {"neon", "dotprod", "fullfp16"} <= target.features
    assert cpu_name(path, "aarch64") == "cortex-a76 (implementer 0x41, part 0xd0b)"


@pytest.mark.skipif(CPUS < 2, reason="a process on one CPU sees one core only")
def test_the_fastest_cores_count(tmp_path: Path) -> None:
    small = (0xD05, A76)
    target = host_target(cpuinfo(tmp_path, small, (0xD41, A76), small), machine="aarch64")
    assert target.name == "arm64-linux+cortex-a78"
    assert target.cores == 1


def test_hidden_features_are_switched_off(tmp_path: Path) -> None:
    target = host_target(cpuinfo(tmp_path, (0xD0B, A76.replace("asimddp", ""))), machine="aarch64")
    assert "-dotprod" in target.llvm["mattr"]
    assert not target.has("dotprod")
    assert target.has("fullfp16")


def test_an_unknown_core_gets_what_it_has_but_no_scalable_vectors(tmp_path: Path) -> None:
    path = cpuinfo(tmp_path, (0x001, f"{A76} sve bf16"), maker=0x99)
    target = host_target(path, machine="aarch64")
    assert target.name == "arm64-linux"
    assert {"+bf16", "+dotprod", "+fullfp16"} <= set(target.llvm["mattr"])
    assert "sve" not in target.features
    assert cpu_name(path, "aarch64") == "ARM core (implementer 0x99, part 0x1)"


def test_32_bit_systems(tmp_path: Path) -> None:
    target = host_target(cpuinfo(tmp_path, (0xD08, "half thumb neon vfpv3 vfpv4 idiva")), machine="armv7l")
    assert target.name == "armv7-linux+cortex-a72"
    assert target.features == {"neon", "vfp4"}


@pytest.mark.parametrize(
    ("part", "features", "length", "core"),
    [
        (0xD40, "sve", "32\n", "neoverse-v1"),
        (0xD40, "sve", "16\n", "neoverse-v1-neon"),
        (0xD40, "sve", None, "neoverse-v1-neon"),
        (0xD40, "", "32\n", "neoverse-v1-neon"),
        (0xD4F, "sve sve2", "16\n", "neoverse-v1-neon"),
    ],
)
def test_sve_is_for_one_length(
    part: int, features: str, length: str | None, core: str, tmp_path: Path
) -> None:
    path, limit = cpuinfo(tmp_path, (part, f"{A76} i8mm bf16 {features}")), tmp_path / "length"
    if length is not None:
        limit.write_text(length)
    target = arm_host(read_processors(path), "aarch64", limit)
    assert target.name == f"arm64-linux+{core}"
    assert target.vector_bits == (256 if core == "neoverse-v1" else 128)
    assert target.has("sve") == (core == "neoverse-v1")
    assert target.cores == 1
