"""How close the hot loops of ARM kernels come to the core's peak, without such a core.

    python scripts/models.py resnet50 mobilenetv2_100 bert_base
    python scripts/bench_arm.py resnet50 mobilenetv2_100 bert_base --target cortex-a76

Builds every kernel of the models that multiplies, with its default config, cuts the hot loop out of the
assembly (`tcomp.codegen.machine_code`) and asks llvm-mca for its cycles. Prints, for each kernel, its uses,
the algorithm and the register tile; the part of the float32 multiply-add peak that the hot loop reaches;
instructions of the loop for each multiply-add of a whole vector; and accesses to the stack in it. `--all`
shows kernels without products too: their innermost loops' accesses to the stack.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from models import MODELS, ROOT
from tcomp.api import static_kernels
from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import LoopCost, hot_loop, innermost_loops, loop_cost, on_stack
from tcomp.frontend.onnx import import_onnx
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import ALGORITHM, Config
from tcomp.tensor.selection import template_for
from tcomp.tuner.task import kernels

TILE_KNOBS = ("tile_rows", "tile_vectors", "tile_height", "tile_width", "oc_blocks")


@dataclass(frozen=True)
class Row:
    """One kernel: `cost` of its hot loop, None without products; `spills` in all its innermost loops."""

    label: str
    uses: int
    tile: str
    cost: LoopCost | None
    spills: int

    def cells(self, target: Target) -> list[str]:
        numbers = ["", "", str(self.spills)]
        if self.cost is not None:
            vectors = self.cost.products / target.lanes()
            numbers = [f"{self.cost.of_peak(target):.0%}", f"{self.cost.instructions / vectors:.2f}"]
            numbers.append(str(self.cost.spills))
        return [self.label, str(self.uses), self.tile, *numbers]


def tile_of(config: Config) -> str:
    """The algorithm of a config, where there are several, and its register tile."""
    sizes = "x".join(str(config[knob]) for knob in TILE_KNOBS if knob in config)
    return " ".join(text for text in (str(config.get(ALGORITHM, "")), sizes) if text)


def row(kernel: Kernel, uses: int, target: Target, program: str | None) -> Row:
    """What the default config of a kernel makes of it."""
    config = template_for(kernel, target).space(kernel, target).default
    assembly = build_kernel(kernel, target, config).source()
    spills = sum(len(on_stack(loop, target.machine)) for loop in innermost_loops(assembly, target.machine))
    body = hot_loop(assembly, target.machine)
    cost = loop_cost(body, target, program) if body else None
    return Row(kernel.label, uses, tile_of(config), cost, spills)


def rows(name: str, target: Target, program: str | None, everything: bool) -> Iterator[Row]:
    """The kernels of a model of `models/`, in order of their first use."""
    graph = import_onnx(ROOT / "models" / f"{name}.onnx", MODELS[name].input_shapes)
    for kernel, uses in kernels(static_kernels(graph, target)):
        anchor = kernel.anchor
        if everything or (
            anchor is not None and ("conv" in anchor.op or anchor.op in ("matmul", "attention"))
        ):
            yield row(kernel, uses, target, program)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names of models in models/")
    parser.add_argument("--target", default="cortex-a76", help="a core, system or board")
    parser.add_argument("--llvm-mca", help="the program; found if not given")
    parser.add_argument("--all", action="store_true", help="kernels without products too")
    arguments = parser.parse_args()
    target = parse_target(arguments.target)
    for name in arguments.models:
        print(f"| {name}, {arguments.target} | uses | tile | of peak | instructions a product | stack |")
        print("|---|---|---|---|---|---|")
        for found in rows(name, target, arguments.llvm_mca, arguments.all):
            print(f"| {' | '.join(found.cells(target))} |", flush=True)
        print()


if __name__ == "__main__":
    main()
