"""How well estimates order the layouts of a convolution: `python scripts/bench_layouts.py [NAME...]`.

Each convolution of a spread from real models is built with plain and blocked input and output and timed, the
kernels in turns, one thread. Prints microseconds of each pair of layouts, and the times of its estimate that
these are, relative to the median over all: 1.0 everywhere would be perfect estimates.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.layouts import PLAIN
from tcomp.relay.types import TensorType
from tcomp.target.host import host_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.transform.layout_costs import stored

Shape = tuple[int, ...]

CONVOLUTIONS: dict[str, tuple[Shape, Shape, int, Shape, int]] = {
    # name: (input, weights, stride, padding of the spatial axes, groups)
    "resnet 3x224 7x7/2": ((1, 3, 224, 224), (64, 3, 7, 7), 2, (3, 3), 1),
    "resnet 64x56 1x1": ((1, 64, 56, 56), (64, 64, 1, 1), 1, (0, 0), 1),
    "resnet 64x56 3x3": ((1, 64, 56, 56), (64, 64, 3, 3), 1, (1, 1), 1),
    "resnet 128x56 3x3/2": ((1, 128, 56, 56), (128, 128, 3, 3), 2, (1, 1), 1),
    "resnet 256x56 1x1/2": ((1, 256, 56, 56), (512, 256, 1, 1), 2, (0, 0), 1),
    "resnet 1024x14 1x1": ((1, 1024, 14, 14), (256, 1024, 1, 1), 1, (0, 0), 1),
    "resnet 512x7 3x3": ((1, 512, 7, 7), (512, 512, 3, 3), 1, (1, 1), 1),
    "mobilenet 3x224 3x3/2": ((1, 3, 224, 224), (32, 3, 3, 3), 2, (1, 1), 1),
    "mobilenet 24x56 1x1": ((1, 24, 56, 56), (144, 24, 1, 1), 1, (0, 0), 1),
    "mobilenet 144x56 1x1": ((1, 144, 56, 56), (24, 144, 1, 1), 1, (0, 0), 1),
    "mobilenet 32x112 depthwise": ((1, 32, 112, 112), (32, 1, 3, 3), 1, (1, 1), 32),
    "mobilenet 144x56 depthwise": ((1, 144, 56, 56), (144, 1, 3, 3), 1, (1, 1), 144),
    "mobilenet 384x14 depthwise": ((1, 384, 14, 14), (384, 1, 3, 3), 1, (1, 1), 384),
    "mobilenet 96x112 depthwise/2": ((1, 96, 112, 112), (96, 1, 3, 3), 2, (1, 1), 96),
    "densenet 128x14 3x3": ((1, 128, 14, 14), (32, 128, 3, 3), 1, (1, 1), 1),
    "densenet 512x28 1x1": ((1, 512, 28, 28), (256, 512, 1, 1), 1, (0, 0), 1),
    "shufflenet 24x56 4 groups": ((1, 24, 56, 56), (112, 6, 1, 1), 1, (0, 0), 4),
    "shufflenet 136x28 4 groups": ((1, 136, 28, 28), (136, 34, 1, 1), 1, (0, 0), 4),
    "shufflenet 272x14 4 groups": ((1, 272, 14, 14), (272, 68, 1, 1), 1, (0, 0), 4),
    "shufflenet 544x7 4 groups": ((1, 544, 7, 7), (544, 136, 1, 1), 1, (0, 0), 4),
    "shufflenet 136x28 depthwise": ((1, 136, 28, 28), (136, 1, 3, 3), 1, (1, 1), 136),
    "pnet 3x46x61 3x3": ((1, 3, 46, 61), (10, 3, 3, 3), 1, (0, 0), 1),
    "pnet 10x22x30 3x3": ((1, 10, 22, 30), (16, 10, 3, 3), 1, (0, 0), 1),
    "pnet 16x20x28 3x3": ((1, 16, 20, 28), (32, 16, 3, 3), 1, (0, 0), 1),
    "pnet 32x18x26 1x1 2": ((1, 32, 18, 26), (2, 32, 1, 1), 1, (0, 0), 1),
    "pnet 32x18x26 1x1 4": ((1, 32, 18, 26), (4, 32, 1, 1), 1, (0, 0), 1),
    "onet 64x4 2x2": ((2, 64, 4, 4), (128, 64, 2, 2), 1, (0, 0), 1),
    "rnet 28x11 3x3": ((2, 28, 11, 11), (48, 28, 3, 3), 1, (0, 0), 1),
    "ocr 120x1x40 depthwise": ((1, 120, 1, 40), (120, 1, 1, 7), 1, (0, 3), 120),
    "ocr 384x3x80 1x1": ((1, 384, 3, 80), (768, 384, 1, 1), 1, (0, 0), 1),
    "gate 192 1x1 48": ((1, 192, 1, 1), (48, 192, 1, 1), 1, (0, 0), 1),
    "gate 512 1x1 1280": ((1, 512, 1, 1), (1280, 512, 1, 1), 1, (0, 0), 1),
    "24x160 3x3 1": ((1, 24, 160, 160), (1, 24, 3, 3), 1, (1, 1), 1),
}


@dataclass
class Timed:
    """A convolution in a pair of layouts, built, with its estimated cycles and measured seconds."""

    name: str
    pair: str
    estimate: float
    runner: KernelRunner
    arguments: Sequence[Any]
    number: int = 1
    seconds: list[float] = field(default_factory=list[float])

    @staticmethod
    def build(name: str, source: str, result: str, target: Target) -> Timed:
        data, weights, stride, padding, groups = CONVOLUTIONS[name]
        builder = GraphBuilder()
        x = builder.input("data", stored(TensorType(data), source).static_shape)
        attrs = {"strides": (stride, stride), "padding": padding * 2, "groups": groups}
        layouts = {"data_layout": source, "out_layout": result}
        result_value = builder.op("conv2d", x, builder.input("weights", weights), **attrs, **layouts)
        kernel = Kernel(builder.build(result_value), frozenset({1}))
        runner = build_kernel(kernel, target)
        rng = np.random.default_rng(0)
        inputs = [rng.standard_normal(v.type.static_shape).astype(np.float32) for v in kernel.body.inputs]
        estimate = template_for(kernel, target).estimate(kernel, target)
        timed = Timed(name, f"{source} > {result}", estimate, runner, runner.prepare(inputs))
        timed.number = max(1, int(2e-3 / min(runner.time_prepared(timed.arguments, 1, 2))))
        return timed

    def measure(self) -> None:
        self.seconds += self.runner.time_prepared(self.arguments, self.number, 1)

    @property
    def per_cycle(self) -> float:
        """Seconds of one estimated cycle."""
        return min(self.seconds) / self.estimate


def row(pairs: Sequence[Timed], typical: float) -> str:
    """The line of one convolution; whether the pair with the least estimate is the fastest."""
    fastest = min(pairs, key=lambda t: min(t.seconds))
    predicted = min(pairs, key=lambda t: t.estimate)
    lost = min(predicted.seconds) / min(fastest.seconds) - 1
    cells = [f"{t.pair}: {min(t.seconds) * 1e6:.1f} us ({t.per_cycle / typical:.2f})" for t in pairs]
    return f"| {pairs[0].name} | {', '.join(cells)} | {lost:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of names; all convolutions without any")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    target = replace(host_target(), cores=1)
    chosen = [n for n in CONVOLUTIONS if not options.names or any(part in n for part in options.names)]
    if not chosen:
        parser.error(f"no convolution's name has {' or '.join(options.names)} in it")
    layouts = (PLAIN, f"NCHW{target.lanes()}c")
    kernels = {
        name: [
            Timed.build(name, source, result, target)
            for source, result in product(layouts, layouts)
            if source == result or CONVOLUTIONS[name][1][1] > 1
        ]
        for name in chosen
    }
    everything = [timed for pairs in kernels.values() for timed in pairs]
    for _ in range(options.rounds):
        for timed in everything:
            timed.measure()
    typical = statistics.median(timed.per_cycle for timed in everything)
    print("| convolution | time (relative to its estimate) | lost by the estimate's choice |\n|---|---|---|")
    print("\n".join(row(pairs, typical) for pairs in kernels.values()))


if __name__ == "__main__":
    main()
