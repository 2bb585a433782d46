"""How close loops of products of few bits come to the multiply-add ports: `python scripts/kernel_cycles.py`.

No such CPU is needed. The default config of every kernel is built for the target, the innermost loop that
multiplies into the most registers is cut out of the assembly, and llvm-mca says how many cycles an iteration
takes in the steady state with all data in the first-level cache. Prints, for each kernel, the register tile,
products and other instructions of an iteration, accesses to the stack among them, cycles, and the part of
them that the multiply-add ports alone need.

The rates of single instructions are taken for granted (`scripts/bench_instructions.py` measures them where
they exist): loads, loop control, decoding and chains of sums are what is checked. LLVM 19's tables do not
know these rates: `vdpbf16ps` has three cycles on Zen 4 there, and Sapphire Rapids one port of 512 bits. So
a product counts as a float32 multiply-add, which uses the same ports as often, and Intel's core by the
tables of skylake-avx512. A broadcast from memory takes a multiplying port in the table of Zen 4; float32
tiles with one for every three products were measured at 95% of the peak there, so it counts as a load.

For ARM cores (`cortex-a76`, `neoverse-v1`), whose instructions llvm-mca knows, it prints the products of
float16 or bfloat16, and of int8, as multiples of the float32 products that the core could start in the same
cycles.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import hot_loop, loop_cost, multiplies, on_stack, simulated_cycles
from tcomp.relay.builder import GraphBuilder, make_node
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.groups import ways_to_sum
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import template_for

INSTRUCTIONS = {"bfloat16": "vdpbf16ps", "float16": "vfmadd231ph"}
TABLES = {"znver4": "znver4", "sapphirerapids": "skylake-avx512"}
"""Targets and the core of LLVM's whose ports are theirs."""
PORTS = {"znver4": 1, "sapphirerapids": 2}
"""Multiply-adds of 512 bits that start in one cycle."""


@dataclass(frozen=True)
class Loop:
    """What llvm-mca says about one iteration."""

    products: int
    others: int
    spills: int
    cycles: float
    bound: float

    @staticmethod
    def of(instructions: list[str], multiply: str, target: Target, program: str) -> Loop:
        code = [re.sub(rf"^{multiply}\b", "vfmadd231ps", text) for text in instructions]
        code = [re.sub(r"^vp?broadcast(ss|d)(?=\s.*\(%r)", "vmovups", text) for text in code]
        cycles = simulated_cycles(code, target.machine, TABLES[target.name], "x86_64", program)
        products = multiplies(instructions, target.machine, multiply)
        bound = products / PORTS[target.name]
        rest = len(instructions) - products
        return Loop(products, rest, len(on_stack(instructions)), cycles, bound)


def matmul(rows: int, depth: int, columns: int, dtype: str) -> Kernel:
    """A product with constant weights, stored in the type of its operands."""
    builder = GraphBuilder()
    operands = builder.input("a", (rows, depth), dtype), builder.input("b", (depth, columns), dtype)
    product = builder.add(make_node("matmul", operands, {"out_dtype": sum_dtype(dtype)})).output
    return Kernel(builder.build(builder.op("cast", product, dtype=dtype)), frozenset({1}))


def sum_dtype(dtype: str) -> str:
    return "int32" if dtype == "int8" else "float32"


def conv(
    channels: int, size: int, outputs: int, kernel: int, stride: int, dtype: str, block: int = 16
) -> Kernel:
    """A convolution of blocked channels with constant weights, stored in the type of its operands."""
    builder = GraphBuilder()
    operands = (
        builder.input("data", (1, channels // block, size, size, block), dtype),
        builder.input("weight", (outputs, channels, kernel, kernel), dtype),
    )
    layouts = {f"{end}_layout": f"NCHW{block}c" for end in ("data", "out")}
    padding = (kernel // 2,) * 4
    product = builder.op(
        "conv2d", *operands, strides=(stride, stride), padding=padding, out_dtype=sum_dtype(dtype), **layouts
    )
    return Kernel(builder.build(builder.op("cast", product, dtype=dtype)), frozenset({1}))


MATMULS = ((128, 768, 768), (128, 3072, 768), (197, 384, 1536))
CONVOLUTIONS = (
    (64, 56, 64, 3, 1), (128, 28, 128, 3, 1), (256, 14, 256, 3, 1), (512, 7, 512, 3, 1), (256, 28, 256, 3, 2),
    (64, 56, 256, 1, 1), (1024, 14, 256, 1, 1), (2048, 7, 512, 1, 1),
)  # fmt: skip
"""Channels, size, output channels, kernel, stride."""


def kernels(dtype: str, block: int = 16) -> dict[str, Kernel]:
    """The kernels by name."""
    products = {f"matmul {m}x{k}x{n}": matmul(m, k, n, dtype) for m, k, n in MATMULS}
    names = [
        f"conv {c}x{s}x{s} to {o}, {k}x{k}" + (f" / {t}" if t > 1 else "") for c, s, o, k, t in CONVOLUTIONS
    ]
    return products | {n: conv(*sizes, dtype, block) for n, sizes in zip(names, CONVOLUTIONS, strict=True)}


def direct_default(kernel: Kernel, target: Target) -> Config:
    """The default config of the template that multiplies in 16 bits."""
    template = template_for(kernel, target)
    return template.algorithms.get(template.name, template).space(kernel, target).default


def tile_of(config: Config) -> str:
    return "x".join(str(config[k]) for k in config if k.startswith("tile_") or k == "oc_blocks")


def print_arm(target: Target, dtype: str, program: str) -> None:
    """The table of one type on an ARM core."""
    sums = ways_to_sum(target, dtype)[0]
    print(f"| {target.name}, {dtype} | tile | instructions | on the stack | cycles | of float32 |")
    print("|---|---|---|---|---|---|")
    for label, kernel in kernels(dtype, sums.block(target)).items():
        config = direct_default(kernel, target)
        loop = hot_loop(build_kernel(kernel, target, config).source(), target.machine)
        cost = loop_cost(loop, target, program)
        counts = f"{cost.instructions} | {cost.spills} | {cost.cycles:.1f} | {cost.of_peak(target):.2f}"
        print(f"| {label} | {tile_of(config)} | {counts} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "targets", nargs="*", default=list(TABLES), help="of " + ", ".join(TABLES) + ", or ARM cores"
    )
    parser.add_argument("--llvm-mca", default="llvm-mca", help="the program, of LLVM 16 or newer")
    arguments = parser.parse_args()
    for name in arguments.targets:
        target = TARGETS[name]
        dtype = str(target.fast_dtype)
        if target.machine == "aarch64":
            for narrow in (dtype, "int8"):
                print_arm(target, narrow, arguments.llvm_mca)
            continue
        print(f"| {name}, {dtype} | tile | products | others | on the stack | cycles | ports busy |")
        print("|---|---|---|---|---|---|---|")
        for label, kernel in kernels(dtype).items():
            config = direct_default(kernel, target)
            assembly = build_kernel(kernel, target, config).source()
            instruction = INSTRUCTIONS[dtype]
            loop = Loop.of(
                hot_loop(assembly, target.machine, instruction), instruction, target, arguments.llvm_mca
            )
            busy = loop.bound / loop.cycles
            counts = f"{loop.products} | {loop.others} | {loop.spills} | {loop.cycles:.1f} | {busy:.0%}"
            print(f"| {label} | {tile_of(config)} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
