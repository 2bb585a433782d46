"""Instructions of whole models on ARM, exact, under qemu: `python scripts/count_arm.py resnet50`.

    python scripts/models.py resnet50 mobilenetv2_100
    python scripts/count_arm.py resnet50 mobilenetv2_100 --target cortex-a76 --kernels

Builds the library of a model with default configs, runs it once and twice under qemu-user with a plugin
that counts (`icount.c`), and prints the difference: the instructions of one inference, and for each
multiply-add of a whole vector. `--kernels` says how they are shared among kernels. One thread, inputs of
zeros: no kernel's path depends on the numbers. Needs qemu-user, a C compiler, and one for the target.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models import MODELS, ROOT
from tcomp.api import static_kernels
from tcomp.codegen.artifact import Report, compile_graph
from tcomp.codegen.model_source import kernel_symbol
from tcomp.codegen.toolchain import find_toolchain
from tcomp.frontend.onnx import import_onnx
from tcomp.target.parse import parse_target
from tcomp.target.target import Target

SCRIPTS = Path(__file__).parent
EMULATORS = {"aarch64": "qemu-aarch64", "arm": "qemu-arm"}
LIBRARIES = {"aarch64": "/usr/aarch64-linux-gnu", "arm": "/usr/arm-linux-gnueabihf"}
"""Where Debian's cross compilers keep the C library."""
Counts = Mapping[int, int]
"""Executed instructions by the address of the straight code that they belong to."""


def build_plugin(folder: Path) -> Path:
    """The compiled plugin."""
    plugin = folder / "icount.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", SCRIPTS / "icount.c", "-o", plugin], check=True)
    return plugin


def counted(emulator: Sequence[str], plugin: Path, program: Sequence[str]) -> tuple[Counts, str]:
    """What a program executes under an emulator, and what it prints."""
    pieces = plugin.with_name("pieces")
    command = [emulator[0], "-plugin", f"{plugin},out={pieces}", *emulator[1:], *program]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: Counter[int] = Counter()
    for line in pieces.read_text().splitlines():
        address, instructions, times = line.split()
        found[int(address, 16)] += int(instructions) * int(times)
    return found, printed


@dataclass(frozen=True)
class Symbols:
    """Functions of a library, by their first address."""

    addresses: Sequence[int]
    names: Sequence[str]

    @staticmethod
    def of(library: Path, nm: str) -> Symbols:
        lines = subprocess.run([nm, "-n", library], check=True, capture_output=True, text=True).stdout
        fields = [line.split() for line in lines.splitlines()]
        code = [(int(f[0], 16), f[2]) for f in fields if len(f) == 3 and f[1] in "tT" and f[2][0] != "$"]
        return Symbols([address for address, _ in code], [name for _, name in code])

    def name(self, address: int) -> str:
        """The function that an address lies in; empty before the first."""
        index = bisect_right(self.addresses, address) - 1
        return self.names[index] if index >= 0 else ""


def by_kernel(report: Report, counts: Counts, base: int, nm: str) -> Mapping[str, int]:
    """Instructions by kernel symbol; those of a kernel's own functions come with it, others under ``."""
    symbols = Symbols.of(report.library, nm)
    end = base + report.library_bytes
    kernels = [kernel_symbol(report.program, i) for i in range(len(report.program.kernels))]
    found: Counter[str] = Counter()
    owner = {name: next((k for k in kernels if name.startswith(k)), "") for name in symbols.names}
    for address, instructions in counts.items():
        name = symbols.name(address - base) if base <= address < end else ""
        found[owner.get(name, "")] += instructions
    return found


def tools(target: Target) -> tuple[list[str], str]:
    """The emulator's command and nm; ends the program where they are missing."""
    emulator = EMULATORS[target.machine]
    nm = next(filter(None, map(shutil.which, ("nm", "llvm-nm-19", "llvm-nm"))), None)
    if shutil.which(emulator) is None or nm is None:
        raise SystemExit(f"{emulator} and nm are needed: apt-get install qemu-user binutils")
    core = str(target.llvm["mcpu"])
    known = subprocess.run([emulator, "-cpu", "help"], capture_output=True, text=True, check=False).stdout
    cpu = ["-cpu", core] if target.machine == "aarch64" and core in known.split() else []
    return [emulator, *cpu, "-L", LIBRARIES[target.machine]], nm


def count(name: str, target: Target, folder: Path) -> tuple[Report, Mapping[str, int]]:
    """A model's library and the instructions of one inference by kernel."""
    graph = import_onnx(ROOT / "models" / f"{name}.onnx", MODELS[name].input_shapes)
    report = compile_graph(static_kernels(graph, target), target, folder / f"{name}.so")
    program = folder / "program"
    flags = [f"-I{folder}", f"-Wl,-rpath,{folder}", "-o", str(program)]
    source = [str(SCRIPTS / "count_arm.c"), str(report.library)]
    subprocess.run([*find_toolchain(target).command, *flags, *source, "-ldl", "-lm"], check=True)
    emulator, nm = tools(target)
    plugin = build_plugin(folder)
    runs = [counted(emulator, plugin, [str(program), str(n)]) for n in (1, 2)]
    (first, printed), (second, again) = runs
    if printed != again:
        raise SystemExit("the library was loaded at another address in the second run")
    one_run = {address: n - first.get(address, 0) for address, n in second.items()}
    return report, by_kernel(report, one_run, int(printed, 16), nm)


def show(name: str, target: Target, report: Report, found: Mapping[str, int], kernels: bool) -> None:
    """Print the total, and each kernel where wanted."""
    program = report.program
    symbols = [kernel_symbol(program, i) for i in range(len(program.kernels))]
    uses = Counter(step.kernel for step in program.steps if hasattr(step, "kernel"))
    lanes = 2 * target.lanes()
    if kernels:
        print("| kernel | uses | million instructions | a product |\n|---|---|---|---|")
        for index, symbol in enumerate(symbols):
            products = uses[index] * program.kernels[index].kernel.flops / lanes
            ratio = f"{found.get(symbol, 0) / products:.2f}" if products else ""
            print(f"| {symbol} | {uses[index]} | {found.get(symbol, 0) / 1e6:.2f} | {ratio} |")
    total = sum(found.values())
    products = sum(uses[i] * program.kernels[i].kernel.flops for i in range(len(symbols))) / lanes
    print(
        f"{name} {target.name}: {total / 1e6:.1f} million instructions, {total / products:.2f} a product, "
        f"{found.get('', 0) / 1e6:.1f} million outside kernels",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names of models in models/")
    parser.add_argument("--target", default="cortex-a76", help="a core, system or board")
    parser.add_argument("--kernels", action="store_true", help="show each kernel")
    arguments = parser.parse_args()
    target = parse_target(arguments.target)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            report, found = count(name, target, Path(folder))
        show(name, target, report, found, arguments.kernels)


if __name__ == "__main__":
    main()
