"""How fast this core multiplies and loads vectors of 512 bits: `python scripts/bench_instructions.py`.

24 independent instructions of a kind in a loop, the kinds in turns, best of 60 runs; loads are from the
first-level cache. Prints the products a second of instructions that multiply, relative to those of float32,
and the loads that start in the time of two multiply-adds. Instructions that the CPU lacks are left out.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from pathlib import Path

from tcomp.target.host import host_target

CHAINS = 24
PRODUCTS = {"vfmadd231ps": 16, "vdpbf16ps": 32, "vfmadd231ph": 32}
"""Products of one instruction."""
LOADS = ("vmovups", "vbroadcastss")
FEATURES = {"vdpbf16ps": "avx512bf16", "vfmadd231ph": "avx512fp16"}
"""What those beyond AVX-512 need, by LLVM's name."""
STEPS, RUNS = 20_000, 60


def source() -> str:
    """A C function of each instruction: `steps` times one step of every chain, all registers zero."""
    registers = (*range(CHAINS), 30, 31)
    zero = "".join(f"vpxord %%zmm{i}, %%zmm{i}, %%zmm{i}\\n" for i in registers)
    clobbered = ", ".join(f'"zmm{i}"' for i in registers)
    functions = ["static char memory[64 * 24] __attribute__((aligned(64)));"]
    for name in (*PRODUCTS, *LOADS):
        operands = [f"{64 * i}(%1)" if name in LOADS else "%%zmm31, %%zmm30" for i in range(CHAINS)]
        chains = "".join(f"{name} {operand}, %%zmm{i}\\n" for i, operand in enumerate(operands))
        loop = f'"{zero}1:\\n{chains}dec %0\\njnz 1b"'
        functions.append(
            f"void {name}(long steps) "
            f'{{ __asm__ volatile({loop} : "+r"(steps) : "r"(memory) : "cc", {clobbered}); }}'
        )
    return "\n".join(functions)


def build(folder: Path) -> ctypes.CDLL:
    """The compiled loops."""
    code, library = folder / "instructions.c", folder / "instructions.so"
    code.write_text(source())
    subprocess.run(["cc", "-O2", "-mavx512f", "-shared", "-fPIC", str(code), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def present() -> list[str]:
    """The instructions that this CPU has."""
    return [name for name in (*PRODUCTS, *LOADS) if host_target().has(FEATURES.get(name, "avx512f"))]


def main() -> None:
    if not present():
        raise SystemExit("this CPU has no AVX-512")
    best = dict.fromkeys(present(), float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
    for _ in range(RUNS):
        for name in best:
            begin = time.perf_counter()
            library[name](ctypes.c_long(STEPS))
            best[name] = min(best[name], time.perf_counter() - begin)
    multiply = best["vfmadd231ps"]
    for name, seconds in best.items():
        if name in LOADS:
            print(f"{name:12} {2 * multiply / seconds:.2f} in the time of two multiply-adds")
        else:
            print(f"{name:12} {PRODUCTS[name] / PRODUCTS['vfmadd231ps'] * multiply / seconds:.2f}")


if __name__ == "__main__":
    main()
