"""How fast this core multiplies and adds in 16 bits: `python scripts/bench_instructions.py`.

24 independent chains of each instruction on 512-bit registers, the instructions in turns, best of 60 runs.
Prints products a second relative to those of float32. Needs a CPU with AVX512-FP16 and AVX512-BF16.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from pathlib import Path

CHAINS = 24
PRODUCTS = {"vfmadd231ps": 16, "vdpbf16ps": 32, "vfmadd231ph": 32}
"""Products of one instruction."""
STEPS, RUNS = 20_000, 60


def source() -> str:
    """A C function of each instruction: `steps` times one step of every chain, all registers zero."""
    zero = "".join(f"vpxord %%zmm{i}, %%zmm{i}, %%zmm{i}\\n" for i in (*range(CHAINS), 30, 31))
    clobbered = ", ".join(f'"zmm{i}"' for i in (*range(CHAINS), 30, 31))
    functions: list[str] = []
    for name in PRODUCTS:
        chains = "".join(f"{name} %%zmm31, %%zmm30, %%zmm{i}\\n" for i in range(CHAINS))
        loop = f'"{zero}1:\\n{chains}dec %0\\njnz 1b"'
        functions.append(
            f'void {name}(long steps) {{ __asm__ volatile({loop} : "+r"(steps) : : "cc", {clobbered}); }}'
        )
    return "\n".join(functions)


def build(folder: Path) -> ctypes.CDLL:
    """The compiled loops."""
    code, library = folder / "instructions.c", folder / "instructions.so"
    code.write_text(source())
    subprocess.run(["cc", "-O2", "-mavx512f", "-shared", "-fPIC", str(code), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def main() -> None:
    best = dict.fromkeys(PRODUCTS, float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
    for _ in range(RUNS):
        for name in PRODUCTS:
            begin = time.perf_counter()
            library[name](ctypes.c_long(STEPS))
            best[name] = min(best[name], time.perf_counter() - begin)
    rates = {name: products / best[name] for name, products in PRODUCTS.items()}
    for name, rate in rates.items():
        print(f"{name:12} {rate / rates['vfmadd231ps']:.2f}")


if __name__ == "__main__":
    main()
