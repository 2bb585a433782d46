"""How fast this core multiplies and loads 512 bits at a time, and tiles: `scripts/bench_instructions.py`.

24 independent instructions of a kind in a loop, the kinds in turns, best of 60 runs; loads are from the
first-level cache. Prints the products a second of instructions that multiply, relative to those of float32,
and the loads that start in the time of two multiply-adds. Products of tiles are in four chains, without loads
(`tdpbf16ps`), and with as many loads (`tileloadd, tdpbf16ps`); of those, the median too. Instructions that
the CPU lacks are left out.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from tcomp.target.host import host_target
from tcomp.tensor.amx import TileBlock, shapes_of

CHAINS = 24
WITH_LOADS = "tileloadd_tdpbf16ps"
PRODUCTS = {"vfmadd231ps": 16, "vdpbf16ps": 32, "vfmadd231ph": 32, "tdpbf16ps": 8192, WITH_LOADS: 8192}
"""Products of one instruction."""
TILES = ("tdpbf16ps", WITH_LOADS)
LOADS = ("vmovups", "vbroadcastss")
FEATURES = {
    "vdpbf16ps": "avx512bf16",
    "vfmadd231ph": "avx512fp16",
    **dict.fromkeys(TILES, "amx-bf16"),
}
"""What those beyond AVX-512 need, by LLVM's name."""
STEPS, RUNS = 20_000, 60


def source() -> str:
    """A C function of each instruction that is present: `steps` times one step of every chain, all registers
    zero."""
    registers = (*range(CHAINS), 30, 31)
    zero = "".join(f"vpxord %%zmm{i}, %%zmm{i}, %%zmm{i}\\n" for i in registers)
    clobbered = ", ".join(f'"zmm{i}"' for i in registers)
    functions = ["static char memory[64 * 64] __attribute__((aligned(64)));"]
    for name in present():
        if name in TILES:
            functions.append(tiles(name))
            continue
        operands = [f"{64 * i}(%1)" if name in LOADS else "%%zmm31, %%zmm30" for i in range(CHAINS)]
        chains = "".join(f"{name} {operand}, %%zmm{i}\\n" for i, operand in enumerate(operands))
        loop = f'"{zero}1:\\n{chains}dec %0\\njnz 1b"'
        functions.append(
            f"void {name}(long steps) "
            f'{{ __asm__ volatile({loop} : "+r"(steps) : "r"(memory) : "cc", {clobbered}); }}'
        )
    return "\n".join(functions)


def tiles(name: str) -> str:
    """A C function of `steps` times as many products of tiles as there are chains of vectors."""
    shapes = ", ".join(map(str, shapes_of(TileBlock(2, 2, 16, 16, 16))))
    loads = [f"tileloadd {1024 * (i - 4)}(%1, %3), %%tmm{i}\\n" for i in range(4, 8)]
    products = [f"tdpbf16ps %%tmm{6 + i % 2}, %%tmm{4 + i // 2}, %%tmm{i}\\n" for i in range(4)]
    step = "".join([*(loads if name == WITH_LOADS else []), *products]) * (CHAINS // 4)
    return (
        f"static const unsigned char {name}_shapes[64] = {{{shapes}}};\n"
        f"void {name}(long steps) "
        f'{{ __asm__ volatile("ldtilecfg (%2)\\n1:\\n{step}dec %0\\njnz 1b\\ntilerelease" '
        f': "+r"(steps) : "r"(memory), "r"({name}_shapes), "r"(64L) : "cc"); }}'
    )


def build(folder: Path) -> ctypes.CDLL:
    """The compiled loops."""
    code, library = folder / "instructions.c", folder / "instructions.so"
    code.write_text(source())
    command = ["cc", "-O2", "-mavx512f", "-shared", "-fPIC", str(code), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def present() -> list[str]:
    """The instructions that this CPU has."""
    return [name for name in (*PRODUCTS, *LOADS) if host_target().has(FEATURES.get(name, "avx512f"))]


def main() -> None:
    if not present():
        raise SystemExit("this CPU has no AVX-512")
    times: dict[str, list[float]] = {name: [] for name in present()}
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
    for _ in range(RUNS):
        for name, found in times.items():
            begin = time.perf_counter()
            library[name](ctypes.c_long(STEPS // 20 if name in TILES else STEPS))
            found.append((time.perf_counter() - begin) * (20 if name in TILES else 1))
    multiply = min(times["vfmadd231ps"])
    for name, found in times.items():
        label = name.replace("_", ", ")
        if name in LOADS:
            print(f"{label:20} {2 * multiply / min(found):.2f} in the time of two multiply-adds")
            continue
        rate = PRODUCTS[name] / PRODUCTS["vfmadd231ps"] * multiply
        usual = f", median {rate / median(found):.2f}" if name in TILES else ""
        print(f"{label:20} {rate / min(found):.2f}{usual}")


if __name__ == "__main__":
    main()
