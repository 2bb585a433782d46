"""How close hot loops of GPU kernels come to the units: `python scripts/kernel_sass.py [--select NAME]`.

No GPU is needed, but NVIDIA's compiler and nvdisasm. Kernels of `gpu_check.py` and a few more, or those of a
model, are compiled by their default config, or by the best of a log, for each target. For each launch a line
says its blocks, registers and how many warps a scheduler has at once; for each loop with products, or the
largest where there are none, what one iteration of all these warps takes: instructions by unit, cycles of
the busiest one, cycles by simulation of the schedule that the assembler wrote into the instructions, and
what share of the unit's peak rate the products then have (`tcomp/codegen/cuda/sass_cycles.py` says how, and
what is left out). `around` are instructions of a loop outside of those inside it. With `--waits N` the N
longest waits for results that one warp's own instructions do not cover.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from math import prod

from gpu_check import CASES
from tcomp.api import as_target, load_model, static_kernels
from tcomp.cli._options import add_logs, add_model, add_precision, input_shapes
from tcomp.codegen.cuda.cubin import Cubin, compile_cubin
from tcomp.codegen.cuda.device_code import Launch, device_code
from tcomp.codegen.cuda.sass import Function, Loop, disassemble, read_sass
from tcomp.codegen.cuda.sass_cycles import SCHEDULERS, LoopCost
from tcomp.errors import TcompError, UsageError
from tcomp.relay.builder import GraphBuilder
from tcomp.target.target import Gpu, Target
from tcomp.tensor.gpu.rates import resident_blocks
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import ALGORITHM, Config
from tcomp.tensor.selection import schedule, template_for
from tcomp.tuner.lookup import Records
from tcomp.tuner.task import kernels

PRODUCTS = ("FFMA", "HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA")
NEGLIGIBLE = 16
"""Instructions of a loop that is not looked at."""


def depthwise(channels: int, size: int, kernel: int, stride: int) -> Kernel:
    g = GraphBuilder()
    data = g.input("data", (1, channels, size, size))
    weight = g.input("weight", (channels, 1, kernel, kernel))
    padding, strides = (kernel // 2,) * 4, (stride, stride)
    result = g.op("conv2d", data, weight, padding=padding, strides=strides, groups=channels)
    return Kernel(g.build(result), frozenset({1}))


def layer_norm(rows: int, columns: int) -> Kernel:
    g = GraphBuilder()
    operands = g.input("x", (rows, columns)), g.input("scale", (columns,)), g.input("bias", (columns,))
    return Kernel(g.build(g.op("layer_norm", *operands, axis=1, epsilon=1e-5)), frozenset({1, 2}))


def elementwise(dtype: str, size: int) -> Kernel:
    g = GraphBuilder()
    sums = g.op("add", g.input("x", (size,), dtype), g.input("y", (size,), dtype))
    return Kernel(g.build(g.op("gelu", sums)))


def named_kernels() -> Iterator[tuple[str, Kernel]]:
    """Those of `gpu_check.py`, and some that memory bounds."""
    yield from ((case.name, case.kernel) for case in CASES)
    yield "depthwise 96 112x112 3x3/1", depthwise(96, 112, 3, 1)
    yield "depthwise 96 112x112 3x3/2", depthwise(96, 112, 3, 2)
    yield "depthwise 384 14x14 7x7/1", depthwise(384, 14, 7, 1)
    yield "layer_norm 4096x768", layer_norm(4096, 768)
    yield "add, gelu 16777216 float32", elementwise("float32", 1 << 24)
    yield "add, gelu 16777216 float16", elementwise("float16", 1 << 24)


def warps_at_once(launch: Launch, cubin: Cubin, gpu: Gpu) -> tuple[int, int]:
    """Blocks that a multiprocessor has at once, and warps of one block for each scheduler."""
    threads, resources = prod(launch.block), cubin.resources[launch.symbol]
    shared = resources.shared_bytes + launch.dynamic_shared_bytes
    fitting = resident_blocks(gpu, threads, resources.registers, shared)
    blocks = min(fitting, -(-prod(launch.grid) // gpu.processors))
    return blocks, max(1, threads // (SCHEDULERS * gpu.warp))


def warps_of_scheduler(launch: Launch, blocks: int, gpu: Gpu) -> int:
    return max(1, round(blocks * prod(launch.block) / (SCHEDULERS * gpu.warp)))


def hot_loops(function: Function) -> list[Loop]:
    """The loops with the most products, or the one with the most instructions where no loop has any."""

    def count(loop: Loop) -> int:
        return sum(one.name in PRODUCTS for one in loop.own)

    loops = [loop for loop in function.loops() if len(loop.own) >= NEGLIGIBLE]
    most = max(map(count, loops), default=0)
    hot = [loop for loop in loops if 2 * count(loop) >= most > 2]
    return hot or sorted(loops, key=lambda loop: len(loop.own))[-1:]


def around(loop: Loop, function: Function) -> int:
    """Instructions of the smallest loop around `loop`, outside of loops inside it; 0 where there is none."""
    outer = [one for one in function.loops() if any(one.body[b:e] == loop.body for b, e in one.inner)]
    return len(min(outer, key=lambda one: len(one.body)).own) if outer else 0


def described(kernel: Kernel, target: Target, config: Config | None, waits: int) -> list[str]:
    """Lines about the launches of a kernel and their loops.

    Raises BuildError where there is no compiler or disassembler.
    """
    gpu = target.gpu
    assert gpu is not None
    code = device_code(schedule(kernel, target, config).function, "kernel", target)
    cubin = compile_cubin(code.source, gpu.arch)
    functions = {one.name: one for one in read_sass(disassemble(cubin.image))}
    lines: list[str] = []
    for launch in code.launches:
        function, resources = functions[launch.symbol], cubin.resources[launch.symbol]
        blocks, together = warps_at_once(launch, cubin, gpu)
        warps = warps_of_scheduler(launch, blocks, gpu)
        lines.append(
            f"  {launch.symbol}: {prod(launch.grid)} blocks of {prod(launch.block)}, {blocks} at once, "
            f"{warps} warps a scheduler, {resources.registers} registers, {resources.spilled_bytes} spilled, "
            f"{len(function.instructions)} instructions"
        )
        for loop in hot_loops(function):
            # Products by plain instructions read their factors by pairs of threads.
            cost = LoopCost(loop.own, gpu, warps, together, paired=True)
            unit, busy = cost.bound
            counts = ", ".join(f"{number} {name}" for name, number in cost.counts.most_common())
            lines.append(
                f"    loop of {len(loop.own)} (around {around(loop, function)}): {counts}\n"
                f"      {cost.stalls} stalls of a warp; {unit} {busy * warps:.0f} of {cost.simulated:.0f} "
                f"cycles; {len(cost.conflicts)} conflicts of registers; {cost.of_peak:.0%} of the peak"
            )
            exposed = sorted(cost.waits, key=lambda wait: -wait.exposed)[:waits]
            lines += [f"      {w.exposed} cycles: {w.producer.text} -> {w.consumer.text}" for w in exposed]
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser, optional=True)
    parser.add_argument("--target", action="append", help="default: cuda:sm_80 and cuda:sm_90a")
    add_precision(parser)
    parser.add_argument("--select", default="", help="only kernels in whose name this occurs")
    add_logs(parser)
    parser.add_argument("--waits", type=int, default=0, help="print so many waits of each loop")
    return parser.parse_args()


def main() -> None:
    try:
        print_all(parse())
    except TcompError as error:
        raise SystemExit(str(error)) from None


def print_all(arguments: argparse.Namespace) -> None:
    """What `described` says of each kernel and target that `arguments` choose.

    Raises UsageError where they choose none, TcompError as what they name does.
    """
    records = Records.load(arguments.log)
    for name in arguments.target or ("cuda:sm_80", "cuda:sm_90a"):
        target = as_target(name)
        if target.gpu is None:
            raise UsageError(f"target `{name}` is no GPU; name one such as cuda:sm_80")
        chosen = [one for one in kernels_of(arguments, target) if arguments.select in one[0]]
        if not chosen:
            raise UsageError(
                f"no kernel has `{arguments.select}` in its name; leave --select away to see all"
            )
        for label, kernel in chosen:
            found = records.lookup(kernel, target)
            template = template_for(kernel, target)
            space = template.space(kernel, target)
            config = space.default if found.record is None else found.record.config
            knobs = " ".join(f"{knob}={value}" for knob, value in config.items() if knob != ALGORITHM)
            said = [f"{label}, {name}: {template.id_of(config)} {knobs}".rstrip()]
            if (cycles := template.cycles(kernel, target)) is not None:
                said.append(f"estimate {cycles(space.complete(config)):.0f} cycles")
            if arguments.log and found.note:
                said.append(f"{found.note}" if found.record else f"the default, {found.note}")
            print("; ".join(said))
            print("\n".join(described(kernel, target, config, arguments.waits)), flush=True)


def kernels_of(arguments: argparse.Namespace, target: Target) -> list[tuple[str, Kernel]]:
    """Kernels and their names. Several of a model may have the same one, so theirs have types as well."""
    if arguments.model is None:
        return list(named_kernels())
    model = load_model(arguments.model, input_shapes(arguments))
    graph = static_kernels(model, target, arguments.precision)
    return [
        (f"{kernel.label} ({', '.join(str(v.type) for v in kernel.body.inputs)})", kernel)
        for kernel, _ in kernels(graph)
    ]


if __name__ == "__main__":
    main()
