"""What estimates of kernels take for granted, measured on the GPU of this machine.

    python scripts/gpu_facts.py --json facts.json
    python scripts/gpu_facts.py --select multiply

A row a fact: what small kernels of CUDA C find (`gpu_kernels/`, by `gpu_measure.py`), what tcomp assumes and
in which module, and the ratio. At the end, those that are off by more than 20%. Cycles are those of a
multiprocessor, counted by the kernels themselves where nothing else is said. What kernels compute is checked.

Kernels run in a process of their own: one that breaks off, hangs or is wrong is named in its row, and those
that follow have a new process. After `--seconds` nothing goes on. With `--json FILE` the facts are written
there after each row. `--small` does next to nothing of everything, to try the script itself. Ends with status
1 when a fact could not be measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from types import ModuleType

from gpu_measure import ALONG, MOST_BITS, Machine, machine
from gpu_script import OutOfTime, add_json, add_seconds, gpu_here, selected, tick_until, write_json
from tcomp.codegen.cuda import jit
from tcomp.plan import streams
from tcomp.target.cuda_state import gpu_state
from tcomp.target.target import Gpu, Target
from tcomp.tensor.attention import mma_plan as mma_attention_plan
from tcomp.tensor.attention import plan as attention_plan
from tcomp.tensor.gpu import rates as gpu_rates
from tcomp.tensor.gpu import simt_space
from tcomp.tensor.tensor_cores import mma_plan, wgmma_plan
from tcomp.tensor.tensor_cores.stored_output import Output
from tcomp.tuner.measure import GIB
from tcomp.tuner.process import Died, WorkerProcess, next_messages
from tcomp.tuner.runner import Failed
from tcomp.tuner.worker import one_line, serve

FAR_OFF = 0.2
"""The part by which an assumption may differ from what is measured."""
FACT_SECONDS = 60.0
"""Limit of one fact; the first starts a process, too."""
MEMORY_BYTES = 8 * GIB


@dataclass(frozen=True, eq=False)
class Assumed:
    """What tcomp assumes of a GPU, and the name of what says so."""

    where: str
    value: Callable[[Gpu], float]


@dataclass(frozen=True)
class Fact:
    """`measure` and `assumed`, times `scale`, are in `unit`; of GPUs that `applies` refuses there is none."""

    name: str
    unit: str
    measure: Callable[[Machine], float]
    assumed: Assumed | None = None
    scale: float = 1.0
    applies: Callable[[Gpu], bool] = lambda gpu: True


@dataclass(frozen=True)
class Row:
    """A fact, as measured and as assumed, in `unit`; None where there is none."""

    name: str
    unit: str
    measured: float | None
    assumed: float | None
    where: str
    problem: str = ""

    @property
    def ratio(self) -> float | None:
        """What is measured to what is assumed."""
        return self.measured / self.assumed if self.measured is not None and self.assumed else None

    @property
    def is_far_off(self) -> bool:
        return self.ratio is not None and not 1 / (1 + FAR_OFF) <= self.ratio <= 1 + FAR_OFF


def constant(module: ModuleType, name: str) -> Assumed:
    """A number that a module of tcomp has."""
    place = ".".join(module.__name__.split(".")[-2:])
    return Assumed(f"{place}.{name}", lambda gpu: getattr(module, name))


def of_gpu(field: str) -> Assumed:
    return Assumed(f"target.Gpu.{field}", lambda gpu: getattr(gpu, field))


def group_cycles(gpu: Gpu, dtype: str, columns: int, rows_read: int) -> float:
    """As `WgmmaPlan.cycles` has them, of one instruction: its products, or the lines that it reads."""
    operations = 2 * wgmma_plan.INSTRUCTION_ROWS * columns * ALONG[dtype]
    multiply = operations * gpu.processors * gpu_rates.clock(gpu) / gpu.flops[dtype]
    return max(multiply, (rows_read + columns) * wgmma_plan.INSTRUCTION_BYTES / gpu_rates.SHARED_BYTES)


def of_warps(dtype: str) -> Fact:
    return Fact(
        f"mma.sync m16n8, {dtype}",
        "cycles",
        lambda m: m.multiply(dtype),
        Assumed(
            "tensor_cores.mma_plan.instruction_cycles", lambda gpu: mma_plan.instruction_cycles(dtype, gpu)
        ),
        applies=lambda gpu: dtype in gpu.flops and gpu.capability >= mma_plan.CAPABILITIES[dtype],
    )


def of_groups(dtype: str, columns: int, of_registers: bool = False) -> Fact:
    rows = 0 if of_registers else wgmma_plan.INSTRUCTION_ROWS
    return Fact(
        f"wgmma m64n{columns}, {dtype}{', left one in registers' if of_registers else ''}",
        "cycles",
        lambda m: m.multiply_groups(dtype, columns, of_registers),
        Assumed(
            "tensor_cores.wgmma_plan.WgmmaPlan.cycles", lambda gpu: group_cycles(gpu, dtype, columns, rows)
        ),
        applies=has_groups,
    )


def has_groups(gpu: Gpu) -> bool:
    return gpu.arch == wgmma_plan.ARCH


CLOCK = Assumed("gpu.rates.clock", gpu_rates.clock)
CACHE, SHARED = constant(gpu_rates, "CACHE_BYTES"), constant(gpu_rates, "SHARED_BYTES")
LAUNCH = constant(gpu_rates, "LAUNCH_CYCLES")
EXPONENTIALS = Assumed(
    "attention.plan.EXPONENTIAL_CYCLES",
    lambda gpu: Gpu.warp * mma_attention_plan.SCHEDULERS / attention_plan.EXPONENTIAL_CYCLES,
)
CHUNK = constant(wgmma_plan, "_CHUNK_CYCLES")
INTEGERS = Assumed(CHUNK.where, lambda gpu: 22 / CHUNK.value(gpu))
"""The cycles of a chunk are those of 22 instructions of this kind."""
HALVES = Output((2,), neighbours=64)
"""Float16 by 8 neighbours of each row, 16 bytes of a sector."""
HALF_SECTORS = Assumed(
    "stored_output.Output.sector_bytes",
    lambda gpu: gpu_rates.CACHE_BYTES * HALVES.nbytes / HALVES.sector_bytes,
)
FACTS: tuple[Fact, ...] = (
    Fact("clock, plain instructions", "MHz", Machine.clock, CLOCK, 1e-6),
    Fact("clock, tensor cores", "MHz", Machine.clock_of_groups, CLOCK, 1e-6, has_groups),
    Fact("float32 multiply-adds", "a cycle", Machine.multiply_adds,
         Assumed("gpu.rates.multiply_adds", lambda gpu: gpu_rates.multiply_adds(gpu, 4))),
    Fact("exponentials", "a cycle", Machine.exponentials, EXPONENTIALS),
    Fact("integer shifts and logic", "a cycle", Machine.integers, INTEGERS, applies=has_groups),
    *(of_warps(dtype) for dtype in ("float16", "bfloat16", "tf32", "int8", "float8_e4m3fn")),
    *(of_groups("float16", columns) for columns in (64, 128, 192, 256)),
    *(of_groups(dtype, 256) for dtype in ("bfloat16", "tf32", "int8", "float8_e4m3fn")),
    *(of_groups("float16", columns, of_registers=True) for columns in (64, 128, 256)),
    *(
        Fact(f"sums by wgmma, {dtype}", "bits", lambda m, dtype=dtype: m.sum_bits(dtype), applies=has_groups)
        for dtype in MOST_BITS
    ),
    Fact("shared memory, loads", "B/cycle", Machine.shared_bytes, SHARED),
    Fact("second-level cache, loads", "B/cycle", Machine.read_near, CACHE),
    Fact("second-level cache, plain products", "B/cycle", Machine.read_near,
         constant(simt_space, "SECOND_LEVEL_BYTES")),
    Fact("second-level cache, cp.async", "B/cycle", Machine.copy_near, CACHE),
    Fact("second-level cache, copy engine", "B/cycle", Machine.copy_tiles, CACHE, applies=has_groups),
    Fact("second-level cache, stores of lines", "B/cycle", lambda m: m.store(1), CACHE),
    Fact("second-level cache, stores of half sectors", "B/cycle", lambda m: m.store(2), HALF_SECTORS),
    Fact("memory, loads", "GB/s", Machine.read_far, of_gpu("bytes_per_second"), 1e-9),
    Fact("memory, filled by the driver", "GB/s", Machine.fill, of_gpu("bytes_per_second"), 1e-9),
    Fact("a load from the second-level cache", "cycles", Machine.load_latency),
    Fact("a load from memory", "cycles", lambda m: m.load_latency(far=True)),
    Fact("a tile loaded, stored, waited for", "cycles", Machine.arrival,
         constant(simt_space, "ARRIVAL_CYCLES")),
    Fact("a tile by the copy engine", "cycles", Machine.copy_latency, constant(mma_plan, "COPY_CYCLES"),
         applies=has_groups),
    Fact("a tile by the copy engine, from memory", "cycles", lambda m: m.copy_latency(far=True),
         constant(mma_plan, "COPY_CYCLES"), applies=has_groups),
    Fact("the end of a step", "cycles", Machine.barrier, constant(mma_plan, "_STEP_CYCLES")),
    Fact("the end of a step, barrier in memory", "cycles", Machine.barrier_in_memory,
         constant(wgmma_plan, "_STEP_CYCLES"), applies=has_groups),
    Fact("a block begins and ends", "cycles", Machine.block, constant(mma_plan, "BLOCK_CYCLES")),
    Fact("a launch alone", "cycles", Machine.launch, LAUNCH),
    Fact("a launch in a graph, behind another", "cycles", Machine.node, LAUNCH),
    Fact("a wait between streams of a graph", "cycles", Machine.wait, constant(streams, "WAIT_CYCLES")),
    Fact("Python starts two events, three launches", "us", Machine.host_start,
         constant(jit, "_START_SECONDS"), 1e6),
    Fact("copies to the GPU, page-locked", "GB/s", lambda m: m.host_copy(to_device=True), None, 1e-9),
    Fact("copies from the GPU, page-locked", "GB/s", lambda m: m.host_copy(to_device=False), None, 1e-9),
)  # fmt: skip


def row_of(fact: Fact, gpu: Gpu, measured: float | None, problem: str = "") -> Row:
    assumed, where = (fact.assumed.value(gpu), fact.assumed.where) if fact.assumed is not None else (None, "")
    found = None if measured is None else measured * fact.scale
    return Row(fact.name, fact.unit, found, None if assumed is None else assumed * fact.scale, where, problem)


def measure(
    facts: Sequence[Fact], gpu: Gpu, small: bool, end: float, changed: Callable[[Row], None],
    limit: float = FACT_SECONDS, entry: str = "gpu_facts.work",
) -> None:  # fmt: skip
    """A row for each of `facts`, by a process of `entry`, replaced when one fails or takes beyond `limit`.

    Raises OutOfTime at `end`, by the monotonic clock.
    """

    process: WorkerProcess | None = None
    try:
        for fact in facts:
            process = process or WorkerProcess(None, 1, MEMORY_BYTES, entry)
            process.send((fact.name, small), f"measuring {fact.name}", limit)
            ((_, message),) = next_messages([process], tick_until(end))
            if isinstance(message, float):
                changed(row_of(fact, gpu, message))
                continue
            assert isinstance(message, Died | Failed)
            changed(row_of(fact, gpu, None, f"{message.status}: {message.reason}"))
            process.stop()
            process = None
    finally:
        if process is not None:
            process.stop()


def work(facts: Sequence[Fact] = FACTS) -> None:
    """What that process runs: it answers the name of a fact, and whether to do little, with a number."""
    here = cache(machine)

    def answer(request: tuple[str, bool]) -> float | Failed:
        name, small = request
        (fact,) = (fact for fact in facts if fact.name == name)
        try:
            return fact.measure(here(small))
        except Exception as error:
            return Failed("run_error", one_line(error))

    serve(answer)


def heads(target: Target) -> str:
    state = ", ".join(f"{name} {value}" for name, value in gpu_state().items())
    said = ", ".join(filter(None, [target.description, target.name, state]))
    return f"{said}\n{'fact':46} {'measured':>10} {'assumed':>10} {'':8} {'ratio':>6} assumed by"


def line(row: Row) -> str:
    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    numbers = f"{text(row.measured):>10} {text(row.assumed):>10} {row.unit:8} {ratio:>6}"
    return f"{row.name:46} {numbers} {row.where} {row.problem}".rstrip()


def summary(rows: Sequence[Row]) -> str:
    """The assumptions that are off, the farthest first."""
    off = [row for row in rows if row.is_far_off]
    off.sort(key=lambda row: -max(row.ratio or 1.0, 1 / (row.ratio or 1.0)))
    if not off:
        return f"no assumption is off by more than {FAR_OFF:.0%}"
    lines = [f"{row.ratio:6.2f} times {row.where}: {row.name}" for row in off]
    return "\n".join([f"off by more than {FAR_OFF:.0%}:", *lines])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_seconds(parser, 180)
    parser.add_argument("--select", default="", help="only facts in whose name this occurs")
    parser.add_argument("--small", action="store_true", help="do as little as possible; times mean nothing")
    add_json(parser)
    return parser.parse_args()


def main() -> int:
    begin, arguments, target = time.monotonic(), parse(), gpu_here()
    gpu, rows, stopped = target.gpu, list[Row](), False
    assert gpu is not None

    def changed(row: Row) -> None:
        rows.append(row)
        print(line(row), flush=True)
        write_json(arguments.json, [{**asdict(r), "ratio": r.ratio} for r in rows])

    facts = selected((fact for fact in FACTS if fact.applies(gpu)), arguments.select)
    print(heads(target), flush=True)
    try:
        measure(facts, gpu, arguments.small, begin + arguments.seconds, changed)
    except (OutOfTime, KeyboardInterrupt) as why:
        print("out of time" if isinstance(why, OutOfTime) else "interrupted")
        stopped = True
    print(summary(rows))
    return int(stopped or any(row.problem for row in rows))


if __name__ == "__main__":
    sys.exit(main())
