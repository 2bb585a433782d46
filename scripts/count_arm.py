"""Instructions of whole models on ARM, exact, under qemu: `python scripts/count_arm.py resnet50`.

    python scripts/models.py resnet50 mobilenetv2_100
    python scripts/count_arm.py resnet50 mobilenetv2_100 --target cortex-a76 --kernels

Builds a program of a model with default configs, runs it once and twice under qemu-user with a plugin
that counts, and prints the difference: the instructions of one inference, and for each
multiply-add of a whole vector. `--kernels` says how they are shared among kernels. One thread, random inputs,
a sentence for models that take tokens. Needs qemu-user, a C compiler, and one for the target.
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

import numpy as np

from models import MODELS, ROOT
from preprocessing import WordPiece
from tcomp.api import static_kernels
from tcomp.codegen.artifact import Report, compile_graph
from tcomp.codegen.emulation import InstructionCounter, find_emulator
from tcomp.codegen.link import compile_c
from tcomp.codegen.model_source import kernel_symbol
from tcomp.codegen.toolchain import find_toolchain
from tcomp.frontend.onnx import import_onnx
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array
from tcomp.runtime.fill import fill
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.transform.allow_strassen import AllowStrassen

SCRIPTS = Path(__file__).parent
LIBRARIES = {"aarch64": "/usr/aarch64-linux-gnu", "arm": "/usr/arm-linux-gnueabihf"}
"""Where Debian's cross compilers keep the C library."""
_LIMIT_SECONDS = 3600.0
_LINKED = ("-O2", "-pie")
"""Without -O2 zig makes what processors lack in a mode that takes it half a minute."""
Counts = Mapping[int, int]
"""Executed instructions by the address of the straight code that they belong to."""


SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody who has seen it asks why it should do so."


@dataclass(frozen=True)
class Symbols:
    """Functions of a library, by their first address, and where its last symbol is."""

    addresses: Sequence[int]
    names: Sequence[str]
    end: int

    @staticmethod
    def of(library: Path, nm: str) -> Symbols:
        lines = subprocess.run([nm, "-n", library], check=True, capture_output=True, text=True).stdout
        fields = [line.split() for line in lines.splitlines()]
        placed = [(int(f[0], 16), f[1], f[2]) for f in fields if len(f) == 3]
        code = [(address, name) for address, kind, name in placed if kind in "tT" and name[0] != "$"]
        return Symbols([address for address, _ in code], [name for _, name in code], placed[-1][0])

    def name(self, address: int) -> str:
        """The function that an address lies in; empty before the first."""
        index = bisect_right(self.addresses, address) - 1
        return self.names[index] if index >= 0 else ""


def by_kernel(program: Path, kernels: Sequence[str], counts: Counts, base: int, nm: str) -> Mapping[str, int]:
    """Instructions by kernel symbol; those of a kernel's own functions come with it, others under ``."""
    symbols = Symbols.of(program, nm)
    end = base + symbols.end  # not the file's size: linkers leave room between segments in memory
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


def cpu_options(target: Target) -> list[str]:
    """What makes the emulator the target's core, where it knows that."""
    core = str(target.llvm["mcpu"])
    known = subprocess.run(
        [find_emulator(target), "-cpu", "help"], capture_output=True, text=True, check=False
    )
    named = target.machine == "aarch64" and not target.sve_bits and core in known.stdout.split()
    return ["-cpu", core] if named else []


def build(graph: Graph, target: Target, folder: Path, strassen: bool) -> tuple[Report, Path]:
    """A program of a model in `folder`, which keeps the names of all its functions."""
    bundle, program = folder / "bundle", folder / "program"
    kernels = static_kernels(graph, target)
    kernels = AllowStrassen().run(kernels) if strassen else kernels
    report = compile_graph(kernels, target, bundle, form="bundle")
    toolchain = find_toolchain(target)
    sources = [SCRIPTS / "count_arm.c", *sorted(bundle.glob("*.c")), *sorted(bundle.glob("*.S"))]
    flags = [f"-I{bundle}", f"-Wa,-I{bundle}"]
    objects = [*compile_c(toolchain, sources, folder, flags), *sorted(bundle.glob("kernels/*.o"))]
    command = [*toolchain.command, *_LINKED, "-o", str(program), *map(str, objects)]
    subprocess.run([*command, "-ldl", "-lm", "-lpthread"], check=True)
    return report, program


def one_run(counter: InstructionCounter, command: Sequence[str]) -> tuple[Counts, str]:
    """What a second run adds to a program that takes the number of runs last, and what it prints.

    Ends this program where that one fails, or says something else after two runs than after one.
    """
    counts, said = list[Counter[int]](), set[str]()
    for runs in (1, 2):
        done = counter.run([*command, str(runs)], _LIMIT_SECONDS)
        if done.status != 0:
            raise SystemExit(f"{command[0]} fails: {done.errors.strip() or done.status}")
        counts.append(Counter())
        for piece in done.pieces:
            counts[-1][piece.address] += piece.instructions * piece.times
        said.add(done.output)
    if len(said) > 1:
        raise SystemExit(f"{command[0]} says something else in its second run: {' '.join(said)}")
    counts[1].subtract(counts[0])
    return counts[1], said.pop()


def sample_inputs(graph: Graph, name: str = "") -> dict[str, Array]:
    """Inputs by name: random numbers, for models that take tokens a sentence as a tokenizer numbers it."""
    shapes = {value.name: value.type.static_shape for value in graph.inputs}
    if set(shapes) == {"input_ids", "attention_mask"}:
        tokenizer = WordPiece(ROOT / "models" / "minilm.vocab.txt")
        ids, mask = tokenizer.encode(SENTENCE, shapes["input_ids"][1])
        return {"input_ids": ids, "attention_mask": mask}
    most, rng = MODELS[name].integers if name in MODELS else {}, np.random.default_rng(0)
    return {
        value.name: rng.integers(0, most[value.name], value.type.static_shape).astype(value.type.dtype)
        if value.name in most
        else fill(value.type.static_shape, value.type.dtype, rng=rng)
        for value in graph.inputs
    }


def count(
    graph: Graph, target: Target, folder: Path, inputs: Mapping[str, Array], strassen: bool = False
) -> tuple[Report, Mapping[str, int], float]:
    """The program of an imported model, in which Strassen's algorithm is allowed or not, the instructions of
    one inference by kernel, and what the magnitudes of its first output add up to."""
    report, program = build(graph, target, folder, strassen)
    arrays = folder / "inputs.bin"
    arrays.write_bytes(b"".join(inputs[value.name].tobytes() for value in graph.inputs))
    options = [*cpu_options(target), "-L", LIBRARIES[target.machine]]
    counter = InstructionCounter(target, folder, caches=False, options=options)
    counts, said = one_run(counter, [str(program), str(arrays)])
    base, total = said.split()
    kernels = [kernel_symbol(report.program, i, 0) for i in range(len(report.program.kernels))]
    return report, by_kernel(program, kernels, counts, int(base, 16), find_nm()), float(total)


def products(report: Report, target: Target) -> float:
    """Multiply-adds of whole vectors that a model's kernels stand for."""
    uses = Counter(step.kernel for step in report.program.steps if hasattr(step, "kernel"))
    flops = sum(uses[i] * planned.kernel.flops for i, planned in enumerate(report.program.kernels))
    return flops / 2 / target.lanes()


def show(name: str, target: Target, report: Report, found: Mapping[str, int], kernels: bool) -> None:
    """Print the total, and each kernel where wanted."""
    program = report.program
    symbols = [kernel_symbol(program, i, 0) for i in range(len(program.kernels))]
    uses = Counter(step.kernel for step in program.steps if hasattr(step, "kernel"))
    lanes = 2 * target.lanes()
    if kernels:
        print("| kernel | uses | million instructions | a product |\n|---|---|---|---|")
        for index, symbol in enumerate(symbols):
            wanted = uses[index] * program.kernels[index].kernel.flops / lanes
            ratio = f"{found.get(symbol, 0) / wanted:.2f}" if wanted else ""
            print(f"| {symbol} | {uses[index]} | {found.get(symbol, 0) / 1e6:.2f} | {ratio} |")
    total = sum(found.values())
    print(
        f"{name} {target.name}: {total / 1e6:.1f} million instructions, "
        f"{total / products(report, target):.2f} a product, "
        f"{found.get('', 0) / 1e6:.1f} million outside kernels",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names of models in models/, or files")
    parser.add_argument("--target", default="cortex-a76", help="a core, system or board")
    parser.add_argument("--strassen", action="store_true", help="allow Strassen's algorithm")
    parser.add_argument("--kernels", action="store_true", help="show each kernel")
    arguments = parser.parse_args()
    target = parse_target(arguments.target)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            known = name in MODELS
            path = ROOT / "models" / f"{name}.onnx" if known else Path(name)
            graph = import_onnx(path, MODELS[name].input_shapes if known else None)
            inputs = sample_inputs(graph, name)
            report, found, _ = count(graph, target, Path(folder), inputs, arguments.strassen)
        show(name, target, report, found, arguments.kernels)


if __name__ == "__main__":
    main()
