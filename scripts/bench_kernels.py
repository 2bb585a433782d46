"""How close single kernels come to the core's peak: `python scripts/bench_kernels.py [NAME...]`.

The peak is a compiled loop of independent fused multiply-adds in registers, run before and after every
timing of a kernel on the same core. Kernels take turns over many rounds, so that slow and quiet moments of
the machine meet all of them: on a core that shares its caches with a neighbour, kernels lose a quarter of
their speed where the peak loop loses nothing. With `--threads` the peak is that of so many cores. Prints,
for each shape with its template's default config, the best and the median ratio to the peak, and the build
time; with `--algorithms` a line for each algorithm that the kernel may have, with `--log` another line for
each kernel with a tuned config, with `--knob NAME=VALUE[,NAME=VALUE...]` one with those knobs changed
together, where they may be. With `--far` the constants of a kernel come from memory, as a model's weights
do, its inputs from the caches: runs take copies of the constants in turns.

Kernels that move more bytes than they compute with, by the measured bandwidth of the memory that holds their
operands, are marked `memory`: their ratio is to the time that moving takes. The last line is the geometric
mean over all others. `--fixed` runs the 40 shapes of `kernel_shapes.FIXED`, whose mean is followed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kernel_shapes import FIXED, KERNELS
from tcomp.codegen.jit import build_scheduled
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.codegen.machine import Machine, measure_machine, multiply_add_rate
from tcomp.target.host import host_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.selection import template_for
from tcomp.tensor.template import Template
from tcomp.tuner.lookup import Records
from tcomp.tuner.provenance import device_name
from tcomp.tvm_api import tvm

FAR_BYTES = 256 * 1024 * 1024
"""More than a last-level cache holds."""


@dataclass(frozen=True)
class Variant:
    """A kernel with the template and the complete config to build it with."""

    name: str
    kernel: Kernel
    template: Template
    config: Config

    @staticmethod
    def every(
        name: str, kernel: Kernel, target: Target, algorithms: bool, records: Records, knobs: Sequence[str]
    ) -> list[Variant]:
        """The kernel's default, or that of each algorithm on offer, with each change of `knobs`; and what
        `records` know."""
        kernel = _allowing_all(kernel) if algorithms else kernel
        template = template_for(kernel, target)
        offered = {"": template}
        if algorithms and template.algorithms:
            offered = {f" {algorithm}": t for algorithm, t in template.algorithms.items()}
        found: list[Variant] = []
        for suffix, one in offered.items():
            space = one.space(kernel, target)
            found.append(Variant(name + suffix, kernel, one, space.complete(space.default)))
            for change in knobs:
                config = _changed(space, dict(part.split("=", 1) for part in change.split(",")))
                found += [Variant(f"{name}{suffix} {change}", kernel, one, config)] if config else []
        record = records.best(kernel, target, device=device_name(target))
        if record:
            config = template.space(kernel, target).complete(record.config)
            found.append(Variant(f"{name} tuned", kernel, template, config))
        return found


def _allowing_all(kernel: Kernel) -> Kernel:
    """`kernel` with leave to be computed by Strassen's algorithm."""
    nodes = tuple(
        replace(n, attrs={**n.attrs, "strassen": True}) if "strassen" in n.attrs else n
        for n in kernel.body.nodes
    )
    return replace(kernel, body=replace(kernel.body, nodes=nodes))


def _changed(space: Space, values: Mapping[str, str]) -> Config | None:
    """The default with other `values`, given as text by knob; None when they are the default's, when a knob
    has no such value, or when that is not legal."""
    known = {(knob.name, str(value)): value for knob in space.knobs for value in knob.values}
    if not all(one in known for one in values.items()):
        return None
    default = space.complete(space.default)
    config = {**default, **{one[0]: known[one] for one in values.items()}}
    return config if space.legal(config) is None and config != default else None


@dataclass
class Timed:
    """A built kernel with its arguments, and what was measured so far: rates in operations a second."""

    name: str
    runner: KernelRunner
    build_seconds: float
    moving: float
    """Seconds to move its operands and results, from the memory that holds them all."""
    arguments: Sequence[Sequence[Any]] = ()
    """Of runs in turns: they differ in the constants."""
    number: int = 1
    rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """Of a rate to the peak measured around it, or to that of moving where moving takes longer."""

    @staticmethod
    def build(variant: Variant, target: Target, machine: Machine, far_bytes: int = 0) -> Timed:
        """With the variant's config, and constants of `far_bytes` and more in all."""
        name, kernel = variant.name, variant.kernel
        begin = time.perf_counter()
        scheduled = variant.template.apply(kernel, target, variant.config)
        runner = build_scheduled(kernel, scheduled, target)
        moving = machine.stream(kernel.nbytes, max(kernel.nbytes, far_bytes))
        timed = Timed(name, runner, time.perf_counter() - begin, moving)
        generator = np.random.default_rng(0)
        inputs = [generator.standard_normal(v.type.static_shape).astype(v.dtype) for v in kernel.body.inputs]
        once = runner.prepare(inputs)
        constants = [once[i] for i in sorted(kernel.constant_inputs)]
        size = sum(c.numpy().nbytes for c in constants)
        copies = -(-far_bytes // size) if size else 0
        timed.arguments = [once, *(_other_constants(kernel, once) for _ in range(copies))]
        if not copies:
            timed.number = max(1, int(2e-3 / min(runner.time_prepared(once, 1, 3))))
        return timed

    @property
    def flops(self) -> int:
        return self.runner.kernel.flops

    def bound_by_memory(self, peak: float) -> bool:
        """Whether moving takes longer than multiplying at `peak` operations a second."""
        return self.moving > self.flops / peak

    def measure(self, peak: Callable[[], float]) -> float:
        """One more time between two of the peak; the better of these."""
        before = peak()
        arguments = self.arguments[len(self.rates) % len(self.arguments)]
        if len(self.arguments) > 1:  # Once: a run before it would bring its constants near.
            (seconds,) = self.runner.clock_prepared(arguments, 1)
        else:
            seconds = min(self.runner.time_prepared(arguments, self.number, 1))
        top = max(before, peak())
        self.rates.append(self.flops / seconds)
        self.ratios.append(max(self.flops / top, self.moving) / seconds)
        return top

    def best_ratio(self, peak: float) -> float:
        """The best rate's, where the best peak was `peak`."""
        return max(self.flops / peak, self.moving) / self.flops * max(self.rates)

    def row(self, peak: float) -> str:
        best, median = max(self.rates), statistics.median(self.ratios)
        bound = "memory" if self.bound_by_memory(peak) else "FMA"
        return (
            f"| {self.name} | {best / 1e9:.1f} | {bound} | {self.best_ratio(peak):.1%} | {median:.1%} "
            f"| {self.flops / best * 1e6:.1f} | {self.build_seconds * 1e3:.0f} |"
        )


def _other_constants(kernel: Kernel, arguments: Sequence[Any]) -> list[Any]:
    """The arguments with copies of the kernel's constants."""

    def copy(tensor: Any) -> Any:
        other = tvm.runtime.empty(tensor.shape, tensor.dtype, tensor.device)
        return other.copyfrom(tensor)

    return [copy(a) if i in kernel.constant_inputs else a for i, a in enumerate(arguments)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of kernel names; all kernels without any")
    parser.add_argument("--fixed", action="store_true", help="of the 40 shapes whose mean is followed")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--far", action="store_true", help="constants from memory, not the caches")
    parser.add_argument("--algorithms", action="store_true", help="each algorithm that a kernel may have")
    parser.add_argument(
        "--log", type=Path, action="append", default=[], help="tuning logs or folders of them"
    )
    parser.add_argument(
        "--knob",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="also with other knobs",
    )
    options = parser.parse_args()
    target = replace(host_target(), cores=options.threads)
    os.environ["TVM_NUM_THREADS"] = str(options.threads)  # Read when the first parallel loop runs.
    chosen = {
        name: KERNELS[name]()
        for name in (FIXED if options.fixed else KERNELS)
        if not options.names or any(part in name for part in options.names)
    }
    if not chosen:
        parser.error(f"no kernel's name has {' or '.join(options.names)} in it")
    records = Records.load(options.log)
    rate, machine = multiply_add_rate(), measure_machine(options.threads)
    far_bytes = FAR_BYTES if options.far else 0
    kernels = [
        Timed.build(variant, target, machine, far_bytes)
        for name, kernel in chosen.items()
        for variant in Variant.every(name, kernel, target, options.algorithms, records, options.knob)
    ]
    peaks = [
        kernel.measure(lambda: options.threads * rate()) for _ in range(options.rounds) for kernel in kernels
    ]
    top = max(peaks)
    print(f"FMA peak {top / 1e9:.1f} GFLOP/s, median {statistics.median(peaks) / 1e9:.1f}\n")
    print("| kernel | GFLOP/s | bound | best | median | us | build ms |\n|---|---|---|---|---|---|---|")
    print("\n".join(kernel.row(top) for kernel in kernels))
    computing = [kernel for kernel in kernels if not kernel.bound_by_memory(top)]
    if computing:
        best = statistics.geometric_mean(kernel.best_ratio(top) for kernel in computing)
        median = statistics.geometric_mean(statistics.median(kernel.ratios) for kernel in computing)
        print(f"\ngeometric mean of {len(computing)} bound by FMA: best {best:.1%}, median {median:.1%}")


if __name__ == "__main__":
    main()
