"""How fast this core multiplies and adds in 16 bits: `python scripts/bench_instructions.py`.

24 independent chains of each instruction on 512-bit registers, the instructions in turns, best of 60 runs.
Prints products a second relative to those of float32. Instructions that the CPU lacks are left out.
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
FEATURES = {"vfmadd231ps": "avx512f", "vdpbf16ps": "avx512bf16", "vfmadd231ph": "avx512fp16"}
"""What each needs, by LLVM's name."""
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


def present() -> list[str]:
    """The instructions that this CPU has."""
    return [name for name, feature in FEATURES.items() if host_target().has(feature)]


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
    rates = {name: PRODUCTS[name] / seconds for name, seconds in best.items()}
    for name, rate in rates.items():
        print(f"{name:12} {rate / rates['vfmadd231ps']:.2f}")


if __name__ == "__main__":
    main()
