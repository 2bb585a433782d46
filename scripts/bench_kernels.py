"""How close single kernels come to the core's peak: `python scripts/bench_kernels.py [NAME...]`.

The peak is a compiled loop of independent fused multiply-adds in registers, run before and after every
timing of a kernel on the same core. Kernels take turns over many rounds, so that slow and quiet moments of
the machine meet all of them: on a core that shares its caches with a neighbour, kernels lose a quarter of
their speed where the peak loop loses nothing. One thread. Prints, for each shape with its template's default
config, the best and the median ratio to the peak, and the build time; with `--algorithms` a line for each
algorithm that the kernel may have, with `--log` another line for each kernel with a tuned config.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tcomp.codegen.jit import KernelRunner, build_scheduled
from tcomp.codegen.machine import multiply_add_rate
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Value
from tcomp.target.host import host_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.template import Template, template_for
from tcomp.tuner.lookup import Records
from tcomp.tuner.provenance import device_name


def matmul(a: tuple[int, ...], b: tuple[int, ...], *epilogue: str, constant: bool = True) -> Kernel:
    builder = GraphBuilder()
    result: Value = builder.op("matmul", builder.input("a", a), builder.input("b", b))
    if epilogue:
        result = builder.op("add", result, builder.input("bias", result.type.static_shape[-1:]))
    for name in epilogue[1:]:
        result = builder.op(name, result)
    return Kernel(builder.build(result), frozenset({1}) if constant else frozenset())


def attention(heads: int, length: int, depth: int) -> Kernel:
    builder = GraphBuilder()
    operands = [builder.input(name, (heads, length, depth)) for name in "qkv"]
    return Kernel(builder.build(builder.op("attention", *operands, scale=depth**-0.5)))


def conv(
    channels: int, size: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> Callable[[], Kernel]:
    """A square convolution with bias and relu in blocked layout, its input plain when it has few channels."""

    def make() -> Kernel:
        builder = GraphBuilder()
        block = host_target().lanes()
        blocked = f"NCHW{block}c"
        plain = channels < block
        shape = (1, channels, size, size) if plain else (1, -(-channels // block), size, size, block)
        result = builder.op(
            "conv2d",
            builder.input("data", shape),
            builder.input("weight", (outputs, channels // groups, kernel, kernel)),
            strides=(stride, stride),
            padding=(kernel // 2,) * 4,
            groups=groups,
            data_layout="NCHW" if plain else blocked,
            out_layout=blocked,
        )
        bias = builder.input("bias", (1, -(-outputs // block), 1, 1, block))
        return Kernel(builder.build(builder.op("relu", builder.op("add", result, bias))), frozenset({1, 2}))

    return make


RESNET50 = {
    "3x224 7x7/2 64": conv(3, 224, 64, 7, 2),
    "64x56 1x1 64": conv(64, 56, 64),
    "64x56 3x3 64": conv(64, 56, 64, 3),
    "64x56 1x1 256": conv(64, 56, 256),
    "256x56 1x1 64": conv(256, 56, 64),
    "256x56 1x1 128": conv(256, 56, 128),
    "128x56 3x3/2 128": conv(128, 56, 128, 3, 2),
    "256x56 1x1/2 512": conv(256, 56, 512, 1, 2),
    "128x28 3x3 128": conv(128, 28, 128, 3),
    "128x28 1x1 512": conv(128, 28, 512),
    "512x28 1x1 128": conv(512, 28, 128),
    "512x28 1x1 256": conv(512, 28, 256),
    "256x28 3x3/2 256": conv(256, 28, 256, 3, 2),
    "512x28 1x1/2 1024": conv(512, 28, 1024, 1, 2),
    "256x14 3x3 256": conv(256, 14, 256, 3),
    "256x14 1x1 1024": conv(256, 14, 1024),
    "1024x14 1x1 256": conv(1024, 14, 256),
    "1024x14 1x1 512": conv(1024, 14, 512),
    "512x14 3x3/2 512": conv(512, 14, 512, 3, 2),
    "1024x14 1x1/2 2048": conv(1024, 14, 2048, 1, 2),
    "512x7 3x3 512": conv(512, 7, 512, 3),
    "512x7 1x1 2048": conv(512, 7, 2048),
    "2048x7 1x1 512": conv(2048, 7, 512),
}
MOBILENET_V2 = {
    "3x224 3x3/2 32": conv(3, 224, 32, 3, 2),
    "32x112 3x3 depthwise": conv(32, 112, 32, 3, 1, 32),
    "32x112 1x1 16": conv(32, 112, 16),
    "16x112 1x1 96": conv(16, 112, 96),
    "96x112 3x3/2 depthwise": conv(96, 112, 96, 3, 2, 96),
    "96x56 1x1 24": conv(96, 56, 24),
    "24x56 1x1 144": conv(24, 56, 144),
    "144x56 3x3 depthwise": conv(144, 56, 144, 3, 1, 144),
    "144x56 1x1 24": conv(144, 56, 24),
    "144x28 1x1 32": conv(144, 28, 32),
    "32x28 1x1 192": conv(32, 28, 192),
    "192x28 3x3 depthwise": conv(192, 28, 192, 3, 1, 192),
    "192x28 1x1 32": conv(192, 28, 32),
    "64x14 1x1 384": conv(64, 14, 384),
    "384x14 3x3 depthwise": conv(384, 14, 384, 3, 1, 384),
    "384x14 1x1 96": conv(384, 14, 96),
    "96x14 1x1 576": conv(96, 14, 576),
    "576x14 1x1 96": conv(576, 14, 96),
    "160x7 1x1 960": conv(160, 7, 960),
    "960x7 1x1 160": conv(960, 7, 160),
    "960x7 1x1 320": conv(960, 7, 320),
    "320x7 1x1 1280": conv(320, 7, 1280),
}

KERNELS: dict[str, Callable[[], Kernel]] = {
    **{f"resnet50 {name}": make for name, make in RESNET50.items()},
    **{f"mobilenetv2 {name}": make for name, make in MOBILENET_V2.items()},
    "matmul 1024x1024x1024": lambda: matmul((1024, 1024), (1024, 1024)),
    "bert 128x768x768": lambda: matmul((128, 768), (768, 768), "bias"),
    "bert 128x768x3072 gelu": lambda: matmul((128, 768), (768, 3072), "bias", "gelu"),
    "bert 128x3072x768": lambda: matmul((128, 3072), (3072, 768), "bias"),
    "vit 197x384x1152": lambda: matmul((197, 384), (384, 1152), "bias"),
    "vit 197x384x1536": lambda: matmul((197, 384), (384, 1536), "bias"),
    "batch 12x128x64x128": lambda: matmul((12, 128, 64), (12, 64, 128), constant=False),
    "batch 12x128x128x64": lambda: matmul((12, 128, 128), (12, 128, 64), constant=False),
    "gemv 1x2048x1000": lambda: matmul((1, 2048), (2048, 1000), "bias"),
    "attention 12x128x64": lambda: attention(12, 128, 64),
}


@dataclass(frozen=True)
class Variant:
    """A kernel with the template and the config to build it with."""

    name: str
    kernel: Kernel
    template: Template
    config: Config

    @staticmethod
    def every(name: str, kernel: Kernel, target: Target, algorithms: bool, records: Records) -> list[Variant]:
        """The kernel's default, or that of each algorithm on offer, and what `records` know."""
        template = template_for(kernel, target)
        offered = {"": template}
        if algorithms and template.algorithms:
            offered = {f" {algorithm}": t for algorithm, t in template.algorithms.items()}
        found = [Variant(name + n, kernel, t, t.space(kernel, target).default) for n, t in offered.items()]
        record = records.best(kernel, target, device=device_name())
        return found + ([Variant(f"{name} tuned", kernel, template, record.config)] if record else [])


@dataclass
class Timed:
    """A built kernel with its arguments, and what was measured so far: rates in operations a second."""

    name: str
    runner: KernelRunner
    build_seconds: float
    arguments: Sequence[Any] = ()
    number: int = 1
    rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """Of a rate to the peak measured around it."""

    @staticmethod
    def build(variant: Variant, target: Target) -> Timed:
        """With the variant's config."""
        name, kernel = variant.name, variant.kernel
        begin = time.perf_counter()
        scheduled = variant.template.apply(kernel, target, variant.config)
        runner = build_scheduled(kernel, scheduled, target)
        timed = Timed(name, runner, time.perf_counter() - begin)
        generator = np.random.default_rng(0)
        timed.arguments = timed.runner.prepare(
            [generator.standard_normal(v.type.static_shape).astype(v.dtype) for v in kernel.body.inputs]
        )
        timed.number = max(1, int(2e-3 / min(timed.runner.time_prepared(timed.arguments, 1, 3))))
        return timed

    def measure(self, peak: Callable[[], float]) -> float:
        """One more time between two of the peak; the peak."""
        before = peak()
        seconds = min(self.runner.time_prepared(self.arguments, self.number, 1))
        top = (before + peak()) / 2
        self.rates.append(self.runner.kernel.flops / seconds)
        self.ratios.append(self.rates[-1] / top)
        return top

    def row(self, peak: float) -> str:
        best, median = max(self.rates), statistics.median(self.ratios)
        return (
            f"| {self.name} | {best / 1e9:.1f} | {best / peak:.1%} | {median:.1%} "
            f"| {self.runner.kernel.flops / best * 1e6:.1f} | {self.build_seconds * 1e3:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of kernel names; all kernels without any")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--algorithms", action="store_true", help="each algorithm that a kernel may have")
    parser.add_argument(
        "--log", type=Path, action="append", default=[], help="tuning logs or folders of them"
    )
    options = parser.parse_args()
    target = replace(host_target(), cores=1)
    chosen = {
        name: make()
        for name, make in KERNELS.items()
        if not options.names or any(part in name for part in options.names)
    }
    if not chosen:
        parser.error(f"no kernel's name has {' or '.join(options.names)} in it")
    records = Records.load(options.log)
    peak = multiply_add_rate()
    kernels = [
        Timed.build(variant, target)
        for name, kernel in chosen.items()
        for variant in Variant.every(name, kernel, target, options.algorithms, records)
    ]
    peaks = [kernel.measure(peak) for _ in range(options.rounds) for kernel in kernels]
    top = max(peaks)
    print(f"FMA peak {top / 1e9:.1f} GFLOP/s, median {statistics.median(peaks) / 1e9:.1f}\n")
    print("| kernel | GFLOP/s | best | median | us | build ms |\n|---|---|---|---|---|---|")
    print("\n".join(kernel.row(top) for kernel in kernels))
    best = statistics.geometric_mean(max(kernel.rates) / top for kernel in kernels)
    median = statistics.geometric_mean(statistics.median(kernel.ratios) for kernel in kernels)
    print(f"\ngeometric mean: best {best:.1%}, median {median:.1%}")


if __name__ == "__main__":
    main()
