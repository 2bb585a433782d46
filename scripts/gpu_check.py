"""Everything that needs a GPU, in one command: `python scripts/gpu_check.py [--trials N] [--seconds S]`.

First the tests marked `gpu`, then a table of kernels: the time of the default config, that of the best of
`--trials` random legal configs (0 for none), what that is of the card's peak for the type, the time of the
same in PyTorch, which calls cuBLAS and cuDNN, where it is installed, and the algorithms of the default and,
where it has another, of the best. Operations are counted as those of direct convolution. Times are medians by
CUDA events with the L2 cache cold, random data. After `--seconds` no further kernel is begun. Writes the
table as JSON with `--json FILE`. Ends with status 1 when a test failed or a kernel's numbers are wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.errors import TcompError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array, numpy_dtype
from tcomp.rounding import relative_error
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.template import template_for

ROOT = Path(__file__).parent.parent
RUNS = 20
"""Timed runs of a kernel."""
TOLERANCE = {"float32": 1e-4, "float16": 5e-3}
"""Largest error over the largest magnitude of the result."""


@dataclass(frozen=True)
class Case:
    """An operator on tensors of these shapes; `torch` computes the same there."""

    name: str
    op: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    attrs: Mapping[str, Any]
    torch: Callable[[Any, Sequence[Any]], Any]
    weights: tuple[int, ...] = (1,)

    @property
    def kernel(self) -> Kernel:
        g = GraphBuilder(self.op)
        inputs = [g.input(f"x{i}", shape, self.dtype) for i, shape in enumerate(self.shapes)]
        return Kernel(g.build(g.op(self.op, *inputs, **self.attrs)), frozenset(self.weights))


@dataclass(frozen=True)
class Row:
    """Seconds of a case; None where there is nothing to compare with, or numbers were wrong (`problem`).

    `algorithms` are the templates of the default and the best config.
    """

    name: str
    default: float | None
    best: float | None
    torch: float | None
    teraflops: float
    of_peak: float
    algorithms: tuple[str, ...]
    problem: str = ""


def matmul(m: int, n: int, k: int, dtype: str) -> Case:
    return Case(
        f"matmul {m}x{n}x{k} {dtype}", "matmul", ((m, k), (k, n)), dtype, {}, lambda t, x: x[0] @ x[1]
    )


def conv(channels: int, filters: int, size: int, kernel: int, stride: int, dtype: str) -> Case:
    padding = kernel // 2

    def in_torch(torch: Any, x: Sequence[Any]) -> Any:
        return torch.nn.functional.conv2d(x[0], x[1], stride=stride, padding=padding)

    name = f"conv {channels}->{filters} {size}x{size} {kernel}x{kernel}/{stride} {dtype}"
    shapes = ((1, channels, size, size), (filters, channels, kernel, kernel))
    attrs = {"strides": (stride,) * 2, "padding": (padding,) * 4}
    return Case(name, "conv2d", shapes, dtype, attrs, in_torch)


def rows(op: str, shape: tuple[int, int], dtype: str) -> Case:
    return Case(
        f"{op} {shape[0]}x{shape[1]} {dtype}", op, (shape,), dtype, {"axis": 1},
        lambda torch, x: torch.softmax(x[0], 1), (),
    )  # fmt: skip


def attention(heads: int, length: int, size: int, dtype: str) -> Case:
    def in_torch(torch: Any, x: Sequence[Any]) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(*x)

    shape, scale = (1, heads, length, size), size**-0.5
    name = f"attention {heads} heads {length}x{size} {dtype}"
    return Case(name, "attention", (shape,) * 3, dtype, {"scale": scale}, in_torch, ())


CASES = (
    *(matmul(n, n, n, dtype) for dtype in ("float16", "float32") for n in (2048, 4096, 8192)),
    *(
        matmul(m, n, k, dtype)
        for dtype in ("float16", "float32")
        for m, n, k in ((128, 768, 768), (128, 3072, 768), (128, 768, 3072), (1, 1000, 2048))
    ),
    *(
        conv(*layer, dtype)
        for dtype in ("float16", "float32")
        for layer in (
            (3, 64, 224, 7, 2), (64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (128, 128, 28, 3, 1),
            (256, 256, 14, 3, 1), (512, 512, 7, 3, 1), (1024, 256, 14, 1, 1),
        )
    ),
    *(
        attention(*sizes, dtype)
        for dtype in ("float16", "float32")
        for sizes in ((12, 128, 64), (16, 1024, 64), (16, 4096, 64), (16, 4096, 128))
    ),
    rows("softmax", (4096, 4096), "float32"),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16, help="random configs of each kernel (default 16)")
    parser.add_argument("--seconds", type=float, default=420.0, help="begin no kernel after so long")
    parser.add_argument("--select", default="", help="only kernels in whose name this occurs")
    parser.add_argument("--no-tests", action="store_true", help="only the table")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    begin, failed = time.monotonic(), False
    target = parse_target("cuda")
    if not arguments.no_tests:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests" / "cuda")]
        failed = subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    print(f"{target.description}, {target.name}: microseconds, L2 cold, median of {RUNS} runs")
    heads = f"{'default':>10} {'best':>10} {'torch':>10} {'ratio':>6} {'TFLOP/s':>8} {'peak':>5}"
    print(f"{'kernel':44} {heads} algorithms")
    found: list[Row] = []
    for case in (c for c in CASES if arguments.select in c.name):
        if time.monotonic() - begin > arguments.seconds:
            print("out of time; the kernels that follow are left out")
            break
        found.append(measure(case, target, arguments.trials))
        print(line(found[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    return int(failed or any(row.problem for row in found))


def measure(case: Case, target: Target, trials: int) -> Row:
    """Check and time `case` by its default config and some others, and by PyTorch."""
    kernel = case.kernel
    inputs, template = random_inputs(kernel), template_for(kernel, target)
    (expected,) = reference(case, inputs)
    default, best, problem = None, None, ""
    default_by = best_by = template.id_of(template.space(kernel, target).default)
    for number, config in enumerate(configs(kernel, target, trials)):
        try:
            runner = build_kernel(kernel, target, config)
            runner.require_no_spills()
            arguments = runner.prepare(inputs)
            runner.run_prepared(arguments)
            error = relative_error(runner.outputs(arguments)[0], expected)
            if error > TOLERANCE[case.dtype]:
                problem = f"wrong by {error:.2g} with {config}"
                continue
            seconds = timed(runner, arguments)
        except TcompError as error:
            problem = str(error) if number == 0 else problem
            continue
        default = seconds if number == 0 else default
        if best is None or seconds < best:
            best, best_by = seconds, template.id_of(config)
    rate = 0.0 if best is None else kernel.flops / best
    peak = target.gpu.flops[case.dtype] if target.gpu else 0.0
    algorithms = (default_by,) if best_by == default_by else (default_by, best_by)
    seconds = torch_seconds(case, inputs)
    return Row(case.name, default, best, seconds, rate / 1e12, rate / peak, algorithms, problem)


def random_inputs(kernel: Kernel) -> list[Array]:
    """Normal numbers, those of weights so small that sums of products are of the size of the activations."""
    generator = np.random.default_rng(0)
    arrays: list[Array] = []
    for index, value in enumerate(kernel.body.inputs):
        shape = value.type.static_shape
        array = generator.standard_normal(shape, np.float32)
        if index in kernel.constant_inputs:
            array /= np.sqrt(array.size / shape[0 if len(shape) > 2 else -1])
        arrays.append(array.astype(numpy_dtype(value.dtype)))
    return arrays


def reference(case: Case, inputs: Sequence[Array]) -> list[Array]:
    """What the case computes in float32: by PyTorch on the GPU, which for numpy would take minutes."""
    wide = [array.astype(np.float32) for array in inputs]
    torch = cuda_torch()
    if torch is None:
        return evaluate(replace(case, dtype="float32").kernel.body, wide)
    tensors = [torch.from_numpy(array).cuda() for array in wide]
    return [case.torch(torch, tensors).cpu().numpy()]


def cuda_torch() -> Any | None:
    """PyTorch with a GPU, whose float32 products are exact here; None where it is not installed."""
    if find_spec("torch") is None:
        return None
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return torch if torch.cuda.is_available() else None


def configs(kernel: Kernel, target: Target, trials: int) -> list[Config]:
    """The default, and other legal configs at random."""
    space = template_for(kernel, target).space(kernel, target)
    random = Random(0)
    return [space.default, *(space.random(random) for _ in range(trials))]


def timed(runner: KernelRunner, arguments: Sequence[Any]) -> float:
    return median(runner.time_prepared(arguments, number=1, repeat=RUNS))


def torch_seconds(case: Case, inputs: Sequence[Array]) -> float | None:
    """Seconds of PyTorch; None where it is not installed."""
    torch = cuda_torch()
    if torch is None:
        return None
    tensors = [torch.from_numpy(array).cuda() for array in inputs]
    cold = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    seconds: list[float] = []
    with torch.no_grad():
        for _ in range(5):
            case.torch(torch, tensors)
        for _ in range(RUNS):
            cold.zero_()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            case.torch(torch, tensors)
            last.record()
            last.synchronize()
            seconds.append(first.elapsed_time(last) * 1e-3)
    return median(seconds)


def line(row: Row) -> str:
    def text(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * 1e6:.1f}"

    ratio = f"{row.torch / row.best:.2f}" if row.torch and row.best else "-"
    numbers = f"{text(row.default):>10} {text(row.best):>10} {text(row.torch):>10} {ratio:>6}"
    said = " ".join([", ".join(row.algorithms), row.problem])
    return f"{row.name:44} {numbers} {row.teraflops:8.1f} {row.of_peak:5.0%} {said}"


if __name__ == "__main__":
    sys.exit(main())
