"""Instructions of whole models on ARM, exact, under qemu: `python scripts/count_arm.py resnet50`.

    python scripts/models.py resnet50 mobilenetv2_100
    python scripts/count_arm.py resnet50 mobilenetv2_100 --target cortex-a76 --kernels

Builds the library of a model with default configs, runs it once and twice under qemu-user with a plugin
that counts, and prints the difference: the instructions of one inference, and for each
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
from tcomp.codegen.emulation import InstructionCounter, find_emulator
from tcomp.codegen.model_source import kernel_symbol
from tcomp.codegen.toolchain import find_toolchain
from tcomp.frontend.onnx import import_onnx
from tcomp.relay.graph import Graph
from tcomp.target.parse import parse_target
from tcomp.target.target import Target

SCRIPTS = Path(__file__).parent
LIBRARIES = {"aarch64": "/usr/aarch64-linux-gnu", "arm": "/usr/arm-linux-gnueabihf"}
"""Where Debian's cross compilers keep the C library."""
_LIMIT_SECONDS = 3600.0
Counts = Mapping[int, int]
"""Executed instructions by the address of the straight code that they belong to."""


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
    kernels = [kernel_symbol(report.program, i, 0) for i in range(len(report.program.kernels))]
    found: Counter[str] = Counter()
    owner = {name: next((k for k in kernels if name.startswith(k)), "") for name in symbols.names}
    for address, instructions in counts.items():
        name = symbols.name(address - base) if base <= address < end else ""
        found[owner.get(name, "")] += instructions
    return found


def find_nm() -> str:
    """The path of nm; ends the program where there is none."""
    found = next(filter(None, map(shutil.which, ("nm", "llvm-nm-19", "llvm-nm"))), None)
    if found is None:
        raise SystemExit("nm is needed: apt-get install binutils")
    return found


def emulator_options(target: Target) -> list[str]:
    """What makes the emulator the target's core, where it knows that, and finds the C library."""
    core = str(target.llvm["mcpu"])
    known = subprocess.run(
        [find_emulator(target), "-cpu", "help"], capture_output=True, text=True, check=False
    )
    cpu = ["-cpu", core] if target.machine == "aarch64" and core in known.stdout.split() else []
    return [*cpu, "-L", LIBRARIES[target.machine]]


def count(graph: Graph, target: Target, folder: Path) -> tuple[Report, Mapping[str, int]]:
    """The library of an imported model and the instructions of one inference by kernel."""
    report = compile_graph(static_kernels(graph, target), target, folder / "model.so")
    program = folder / "program"
    flags = [f"-I{folder}", f"-Wl,-rpath,{folder}", "-o", str(program)]
    source = [str(SCRIPTS / "count_arm.c"), str(report.library)]
    subprocess.run([*find_toolchain(target).command, *flags, *source, "-ldl", "-lm"], check=True)
    counter = InstructionCounter(target, folder, caches=False, options=emulator_options(target))
    counts, places = list[Counter[int]](), set[str]()
    for runs in (1, 2):
        done = counter.run([str(program), str(runs)], _LIMIT_SECONDS)
        if done.status != 0:
            raise SystemExit(f"the model does not run: {done.errors.strip() or done.status}")
        counts.append(Counter())
        for piece in done.pieces:
            counts[-1][piece.address] += piece.instructions * piece.times
        places.add(done.output)
    if len(places) > 1:
        raise SystemExit("the library was loaded at another address in the second run")
    counts[1].subtract(counts[0])
    return report, by_kernel(report, counts[1], int(places.pop(), 16), find_nm())


def show(name: str, target: Target, report: Report, found: Mapping[str, int], kernels: bool) -> None:
    """Print the total, and each kernel where wanted."""
    program = report.program
    symbols = [kernel_symbol(program, i, 0) for i in range(len(program.kernels))]
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
    parser.add_argument("models", nargs="+", help="names of models in models/, or files")
    parser.add_argument("--target", default="cortex-a76", help="a core, system or board")
    parser.add_argument("--kernels", action="store_true", help="show each kernel")
    arguments = parser.parse_args()
    target = parse_target(arguments.target)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            known = name in MODELS
            path = ROOT / "models" / f"{name}.onnx" if known else Path(name)
            graph = import_onnx(path, MODELS[name].input_shapes if known else None)
            report, found = count(graph, target, Path(folder))
        show(name, target, report, found, arguments.kernels)


if __name__ == "__main__":
    main()
