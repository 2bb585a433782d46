"""Everything that needs a GPU, in one command: `python scripts/gpu_check.py [--trials N] [--seconds S]`.

First the tests marked `gpu`, then a table of kernels: the time of the default config, that of the best of
`--trials` random legal configs (0 for none) or of as many as its share of the time allows, what that is of
the card's peak for the type, the time of the same in PyTorch, which calls cuBLAS, cuDNN and FlashAttention,
where it is installed, with `--triton` also that of the kernel which PyTorch's compiler finds among
Triton's, and the algorithms of the default and, where it has another, of the best. Below, for each kind of
kernel the geometric mean of the ratios of PyTorch's time to the best, beside what it should be. Operations
are counted as those of direct convolution. Times are medians by CUDA events with the L2 cache cold, the
best and PyTorch in turns, random data. After `--seconds` no further kernel is begun. Writes the table as
JSON with `--json FILE`. Ends with status 1 when a test failed or a kernel's numbers are wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from math import inf
from pathlib import Path
from random import Random
from statistics import geometric_mean, median
from typing import Any

import numpy as np

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.errors import BuildError, DeviceError, TcompError
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
RUNS, ROUNDS = 20, 5
"""Timed runs of a kernel, and turns of the best config and PyTorch with so many runs each."""
TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 4e-2}
"""Largest error over the largest magnitude of the result."""
GOALS = {
    "square products": 1.0,
    "products of models": 1.1,
    "convolutions, 1 image": 1.0,
    "convolutions, 32 images": 1.0,
    "attention": 1.0,
    "rows": 1.0,
}
"""The ratio of PyTorch's time to tcomp's that each kind of kernel should have in the mean."""


@dataclass(frozen=True)
class Case:
    """An operator on tensors of these shapes; `torch` computes the same there. `kind` is one of `GOALS`.

    `dtype` is that of products; tensors of `tf32` are float32.
    """

    kind: str
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
        is_tf32 = self.dtype == "tf32"
        inputs = [
            g.input(f"x{i}", s, "float32" if is_tf32 else self.dtype) for i, s in enumerate(self.shapes)
        ]
        attrs = {**self.attrs, "multiply_as": "tf32"} if is_tf32 else self.attrs
        return Kernel(g.build(g.op(self.op, *inputs, **attrs)), frozenset(self.weights))


@dataclass(frozen=True)
class Row:
    """Seconds of a case; None where there is nothing to compare with, or numbers were wrong (`problem`).

    `algorithms` are the templates of the default and the best config, found among `configs`.
    """

    kind: str
    name: str
    default: float | None
    best: float | None
    torch: float | None
    triton: float | None
    teraflops: float
    of_peak: float
    configs: int
    algorithms: tuple[str, ...]
    problem: str = ""


def matmul(m: int, n: int, k: int, dtype: str) -> Case:
    kind = "square products" if m == n == k else "products of models"
    name = f"matmul {m}x{n}x{k} {dtype}"
    return Case(kind, name, "matmul", ((m, k), (k, n)), dtype, {}, lambda t, x: x[0] @ x[1])


def conv(
    channels: int, filters: int, size: int, kernel: int, stride: int, dtype: str, images: int = 1
) -> Case:
    padding = kernel // 2

    def in_torch(torch: Any, x: Sequence[Any]) -> Any:
        return torch.nn.functional.conv2d(x[0], x[1], stride=stride, padding=padding)

    kind = "convolutions, 1 image" if images == 1 else f"convolutions, {images} images"
    name = f"conv {images}x {channels}->{filters} {size}x{size} {kernel}x{kernel}/{stride} {dtype}"
    shapes = ((images, channels, size, size), (filters, channels, kernel, kernel))
    attrs = {"strides": (stride,) * 2, "padding": (padding,) * 4}
    return Case(kind, name, "conv2d", shapes, dtype, attrs, in_torch)


def rows(op: str, shape: tuple[int, int], dtype: str) -> Case:
    name = f"{op} {shape[0]}x{shape[1]} {dtype}"
    return Case("rows", name, op, (shape,), dtype, {"axis": 1}, lambda torch, x: torch.softmax(x[0], 1), ())


def attention(heads: int, length: int, size: int, dtype: str, causal: bool = False) -> Case:
    def in_torch(torch: Any, x: Sequence[Any]) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(*x, is_causal=causal)

    shape, attrs = (1, heads, length, size), {"scale": size**-0.5, "causal": int(causal)}
    name = f"attention {heads} heads {length}x{size}{' causal' if causal else ''} {dtype}"
    return Case("attention", name, "attention", (shape,) * 3, dtype, attrs, in_torch, ())


LAYERS = (
    (3, 64, 224, 7, 2), (64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (128, 128, 28, 3, 1),
    (256, 256, 14, 3, 1), (512, 512, 7, 3, 1), (1024, 256, 14, 1, 1),
)  # fmt: skip
"""Convolutions of ResNet-50."""
CASES = (
    *(matmul(n, n, n, dtype) for dtype in TOLERANCE for n in (2048, 4096, 8192)),
    *(
        matmul(m, n, k, dtype)
        for dtype in ("float16", "float32")
        for m, n, k in ((128, 768, 768), (128, 3072, 768), (128, 768, 3072), (1, 1000, 2048))
    ),
    *(
        conv(*layer, dtype, images)
        for images in (1, 32)
        for dtype in ("float16", "float32")
        for layer in LAYERS
    ),
    *(
        attention(*sizes, dtype)
        for dtype in ("float16", "float32")
        for sizes in ((12, 128, 64), (16, 1024, 64), (16, 4096, 64), (16, 4096, 128))
    ),
    attention(16, 4096, 128, "float16", causal=True),
    rows("softmax", (4096, 4096), "float32"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16, help="random configs of each kernel (default 16)")
    parser.add_argument("--seconds", type=float, default=420.0, help="begin no kernel after so long")
    parser.add_argument("--select", default="", help="only kernels in whose name this occurs")
    parser.add_argument("--no-tests", action="store_true", help="only the table")
    parser.add_argument("--triton", action="store_true", help="time Triton's too, which takes long to find")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    begin, failed = time.monotonic(), False
    target = gpu_here()
    if not arguments.no_tests:
        # Compiling takes most time.
        parallel = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
        tests = str(ROOT / "tests" / "cuda")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *parallel, tests]
        failed = subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    print(f"{target.description}, {target.name}: microseconds, L2 cold, median of {RUNS} runs")
    heads = (
        f"{'default':>10} {'best':>10} {'torch':>10} {'triton':>10} {'ratio':>6} {'TFLOP/s':>8} {'peak':>5}"
    )
    print(f"{'kernel':44} {heads} algorithms")
    found: list[Row] = []
    cases = [c for c in CASES if arguments.select in c.name]
    for number, case in enumerate(cases):
        left = arguments.seconds - (time.monotonic() - begin)
        if left < 0:
            print("out of time; the kernels that follow are left out")
            break
        share = left / (len(cases) - number)
        found.append(measure(case, target, arguments.trials, share, arguments.triton))
        print(line(found[-1]), flush=True)
    print(means(found))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    return int(failed or any(row.problem for row in found))


def gpu_here() -> Target:
    """The GPU of this machine; ends the program with a line that says what is missing where there is none."""
    try:
        return parse_target("cuda")
    except DeviceError as error:
        raise SystemExit(str(error)) from None


def measure(case: Case, target: Target, trials: int, seconds: float = inf, with_triton: bool = False) -> Row:
    """Check and time `case` by its default config, others as long as `seconds` allow, and PyTorch."""
    begin, kernel = time.monotonic(), case.kernel
    inputs, template = random_inputs(kernel), template_for(kernel, target)
    (expected,) = reference(case, inputs)
    times: list[tuple[float, Config, KernelRunner]] = []
    problem = ""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        every = configs(kernel, target, trials)
        building = [pool.submit(build_kernel, kernel, target, config) for config in every]
        for number, (config, building_one) in enumerate(zip(every, building, strict=True)):
            if number and time.monotonic() - begin > seconds:
                pool.shutdown(cancel_futures=True)
                break
            try:
                runner = building_one.result()
                taken, error = checked(runner, inputs, expected)
            except BuildError as refused:  # Tuning drops what spills; defaults must not.
                problem = problem if number else str(refused)
                continue
            except TcompError as failure:
                problem = f"{failure} with {config}"
                continue
            if error > TOLERANCE[case.dtype]:
                problem = f"wrong by {error:.2g} with {config}"
                continue
            times.append((taken, config, runner))
    default_by = template.id_of(template.space(kernel, target).default)
    if not times:
        nothing = None, None, None, None
        return Row(case.kind, case.name, *nothing, 0.0, 0.0, len(every), (default_by,), problem)
    _, config, runner = min(times, key=lambda found: found[0])
    best, in_torch = in_turns(runner, case, inputs)
    in_triton = triton_seconds(case, inputs) if with_triton else None
    default = (
        best if config is every[0] else next((taken for taken, one, _ in times if one is every[0]), None)
    )
    rate, peak = kernel.flops / best, target.gpu.flops[case.dtype] if target.gpu else 0.0
    algorithms = tuple(dict.fromkeys((default_by, template.id_of(config))))
    return Row(
        case.kind, case.name, default, best, in_torch, in_triton, rate / 1e12, rate / peak,
        len(times), algorithms, problem,
    )  # fmt: skip


def checked(runner: KernelRunner, inputs: Sequence[Array], expected: Array) -> tuple[float, float]:
    """Seconds and the error of a kernel.

    Raises BuildError when it spills registers, KernelError when the GPU does not run it.
    """
    runner.require_no_spills()
    arguments = runner.prepare(inputs)
    runner.run_prepared(arguments)
    error = relative_error(runner.outputs(arguments)[0], expected)
    return timed(runner, arguments), error


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
    torch = cuda_torch("float32")
    if torch is None:
        return evaluate(replace(case, dtype="float32").kernel.body, wide)
    tensors = [torch.from_numpy(array).cuda() for array in wide]
    return [case.torch(torch, tensors).cpu().numpy()]


def cuda_torch(dtype: str) -> Any | None:
    """PyTorch with a GPU, whose float32 products are exact but for `tf32`; None where it is not installed."""
    if find_spec("torch") is None:
        return None
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    torch.backends.cudnn.benchmark = True
    return torch if torch.cuda.is_available() else None


def configs(kernel: Kernel, target: Target, trials: int) -> list[Config]:
    """The default, and other legal configs at random."""
    space = template_for(kernel, target).space(kernel, target)
    random = Random(0)
    return [space.default, *(space.random(random) for _ in range(trials))]


def timed(runner: KernelRunner, arguments: Any) -> float:
    return median(runner.time_prepared(arguments, number=1, repeat=RUNS))


def in_turns(runner: KernelRunner, case: Case, inputs: Sequence[Array]) -> tuple[float, float | None]:
    """Seconds of a kernel and of PyTorch, None where it is not installed: medians of rounds."""
    arguments, run = runner.prepare(inputs), torch_run(case, inputs)
    rounds = [(timed(runner, arguments), None if run is None else torch_seconds(run)) for _ in range(ROUNDS)]
    ours, theirs = zip(*rounds, strict=True)
    return median(ours), None if run is None else median(theirs)


def torch_run(case: Case, inputs: Sequence[Array]) -> Callable[[], object] | None:
    """One run of PyTorch, with its inputs on the GPU; None where it is not installed."""
    torch = cuda_torch(case.dtype)
    if torch is None:
        return None
    tensors = [_tensor(torch, array) for array in inputs]
    return lambda: case.torch(torch, tensors)


def triton_seconds(case: Case, inputs: Sequence[Array]) -> float | None:
    """Seconds of the fastest kernel that PyTorch's compiler makes with Triton alone."""
    torch = cuda_torch(case.dtype)
    if torch is None:
        return None
    tensors = [_tensor(torch, array) for array in inputs]
    only = {
        "max_autotune": True,
        "max_autotune_gemm_backends": "TRITON",
        "max_autotune_conv_backends": "TRITON",
    }
    compiled = torch.compile(lambda *x: case.torch(torch, x), options=only)
    try:
        return torch_seconds(lambda: compiled(*tensors))
    finally:
        torch.compiler.reset()


def _tensor(torch: Any, array: Array) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def torch_seconds(run: Callable[[], object]) -> float:
    """Seconds of a run, the cache cold; filling memory takes the GPU longer than Python takes to launch."""
    import torch

    cold = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    seconds: list[float] = []
    with torch.no_grad():
        for number in range(5 + RUNS):
            cold.zero_()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            last.synchronize()
            if number >= 5:
                seconds.append(first.elapsed_time(last) * 1e-3)
    return median(seconds)


def line(row: Row) -> str:
    def text(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * 1e6:.1f}"

    ratio = f"{row.torch / row.best:.2f}" if row.torch and row.best else "-"
    times = " ".join(f"{text(s):>10}" for s in (row.default, row.best, row.torch, row.triton))
    said = " ".join([", ".join(row.algorithms), row.problem])
    return f"{row.name:44} {times} {ratio:>6} {row.teraflops:8.1f} {row.of_peak:5.0%} {said}"


def means(found: Sequence[Row]) -> str:
    """A line for each kind of kernels that PyTorch ran too."""
    lines: list[str] = []
    for kind, goal in GOALS.items():
        ratios = [r.torch / r.best for r in found if r.kind == kind and r.torch and r.best]
        if ratios:
            mean, least = geometric_mean(ratios), min(ratios)
            lines.append(
                f"{kind:44} {mean:5.2f} of PyTorch's speed (should be {goal:.2f}; least {least:.2f})"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
