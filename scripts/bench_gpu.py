"""Whole models on this GPU: tcomp, tuned and untuned, beside PyTorch's compiler, in turns.

    python scripts/models.py resnet50 bert_base
    tcomp tune models/resnet50.onnx --target cuda --precision fast --log resnet50.jsonl
    python scripts/bench_gpu.py resnet50 bert_base --log resnet50.jsonl
    python scripts/bench_gpu.py resnet50 --precisions float16 --seconds 300 --json results.json

PyTorch runs the same graph (`torch_graph.py`), with normalisations, attention and merged products as
tcomp's passes leave them, eagerly and by `torch.compile` in the mode `max-autotune`, which takes Triton's,
cuBLAS's and cuDNN's kernels by measuring and launches them as CUDA graphs. float16 is PyTorch's module in
float16 and tcomp's `--precision fast`; images lie as channels-last there. In each round all run once, so that
a change of clocks meets all; columns are medians of ratios to `torch.compile` in the same rounds (below 1 is
faster) and their quartiles. Inputs and outputs stay in the GPU's memory. Errors are relative to the largest
number of an output, the worst of all outputs, against the graph in PyTorch in float32.

Each model in each precision has a process of its own: what breaks off costs its own row. First tcomp and
PyTorch's eager mode are timed, then all beside `torch.compile`, which may search for minutes; either is
printed, and with `--json FILE` written, when it is there. After `--seconds` nothing goes on. Ctrl-C and
SIGTERM print what there is. Ends with status 1 when something failed, 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from bench_cpu import random_inputs, ratio_cell, ratios
from gpu_script import OutOfTime, add_json, add_seconds, gpu_here, tick_until, write_json
from models import MODELS, ROOT
from tcomp.codegen.artifact import compile_graph
from tcomp.frontend.onnx import import_onnx
from tcomp.relay.graph import Graph
from tcomp.rounding import relative_error
from tcomp.runtime import load
from tcomp.target.target import Target
from tcomp.transform.fuse_ops import FuseOps
from tcomp.transform.layout import BlockChannels
from tcomp.transform.pipeline import optimize, passes_before_lowering, run_passes
from tcomp.transform.precision import Precision
from tcomp.tuner.choices import choose_configs
from tcomp.tuner.process import Died, WorkerProcess, next_messages
from tcomp.tuner.runner import Failed
from tcomp.tuner.worker import one_line, serve
from torch_graph import TorchGraph

PRECISIONS: Mapping[str, Precision] = {"float32": "exact", "tf32": "tf32", "float16": "fast"}
REFERENCE = "torch.compile"
STAGES = 2
"""Of `bench`."""
MEMORY_BYTES = 64 << 30
"""Physical, of the process of a model."""
Run = Callable[[], Sequence[torch.Tensor]]
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model in a precision, and its inputs as numpy has them."""

    name: str
    graph: Graph
    inputs: Mapping[str, Any]
    precision: str

    def to_torch(self, target: Target) -> TorchGraph:
        """A new module, with all that passes for `target` do before they choose layouts and kernels."""
        passes = passes_before_lowering(target)
        return TorchGraph(
            run_passes(self.graph, [p for p in passes if not isinstance(p, FuseOps | BlockChannels)])
        )


def case_of(name: str, precision: str) -> Case:
    """The model `name` of `scripts/models.py`."""
    graph = import_onnx(ROOT / "models" / f"{name}.onnx", MODELS[name].input_shapes)
    return Case(name, graph, random_inputs(name, graph), precision)


def torch_runs(case: Case, target: Target, device: torch.device, mode: str) -> dict[str, Run]:
    """PyTorch's, eager and compiled."""
    wide = torch.float32
    narrow = torch.float16 if case.precision == "float16" else wide
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.precision == "tf32"
    torch.backends.cudnn.benchmark = True
    module = case.to_torch(target).to(device, narrow, memory_format=torch.channels_last).eval()
    tensors = [_tensor(a, device, narrow) for a in case.inputs.values()]
    compiled = torch.compile(module, mode=mode)

    def run(call: Callable[..., Sequence[torch.Tensor]]) -> Run:
        def once() -> Sequence[torch.Tensor]:
            with torch.no_grad():
                return call(*tensors)

        return once

    return {"torch": run(module), REFERENCE: run(compiled)}


def _tensor(array: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(array).to(device)
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def tcomp_runs(
    case: Case, target: Target, device: torch.device, logs: Sequence[Path], folder: Path
) -> tuple[dict[str, Run], str]:
    """Libraries with and without records, and how many kernels have some."""
    kernels = optimize(case.graph, target, precision=PRECISIONS[case.precision])
    choices = choose_configs(kernels, target, logs)
    variants = {"untuned": None} | ({"tuned": choices.config_of} if choices.tuned else {})
    runs: dict[str, Run] = {}
    for variant, config_of in variants.items():
        library = folder / f"{case.name}_{case.precision}_{variant}.so"
        compile_graph(kernels, target, library, config_of)
        runs[variant] = _library_run(library, case, device)
    return runs, f"{choices.tuned}/{choices.tuned + len(choices.missing)}"


def _library_run(library: Path, case: Case, device: torch.device) -> Run:
    model = load(library)
    inputs = [torch.from_numpy(a).to(device) for a in case.inputs.values()]
    outputs = [
        torch.empty(info.shape, dtype=getattr(torch, info.dtype), device=device) for info in model.outputs
    ]

    def run() -> Sequence[torch.Tensor]:
        if device.type == "cuda":
            model.enqueue(inputs, outputs, torch.cuda.current_stream().cuda_stream)
        else:
            model.run_into([t.numpy() for t in inputs], [t.numpy() for t in outputs])
        return outputs

    return run


def expected_outputs(case: Case, target: Target, device: torch.device) -> list[Any]:
    """The graph in float32, without tf32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module = case.to_torch(target).to(device)
    with torch.no_grad():
        return [
            y.cpu().numpy() for y in module(*(torch.from_numpy(a).to(device) for a in case.inputs.values()))
        ]


def worst_error(run: Run, expected: Sequence[Any]) -> float:
    """Of all outputs, relative to the largest number of each."""
    return max(
        relative_error(got.float().cpu().numpy(), wanted) for got, wanted in zip(run(), expected, strict=True)
    )


def seconds_of(run: Run, device: torch.device, number: int) -> float:
    """Of one run, out of `number` begun one after the other."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(number):
            run()
        return (time.perf_counter() - start) / number
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(number):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) * 1e-3 / number


def bench(
    case: Case,
    target: Target,
    device: torch.device,
    logs: Sequence[Path],
    rounds: int,
    number: int,
    mode: str,
) -> Iterator[Result]:
    """Times in seconds of each in every round, and errors: first without the compiler, then with it."""
    expected = expected_outputs(case, target, device)
    with tempfile.TemporaryDirectory() as folder:
        ours, records = tcomp_runs(case, target, device, logs, Path(folder))
        theirs = torch_runs(case, target, device, mode)
        compiled = {REFERENCE: theirs.pop(REFERENCE)}
        for runs in (theirs | ours, theirs | compiled | ours):
            errors = {name: worst_error(run, expected) for name, run in runs.items()}
            times: dict[str, list[float]] = {name: [] for name in runs}
            for run in runs.values():  # PyTorch records its graphs in the second and third run.
                seconds_of(run, device, 3)
            for _ in range(rounds):
                for name, run in runs.items():
                    times[name].append(seconds_of(run, device, number))
            yield {"model": case.name, "precision": case.precision,
                   "records": records, "times": times, "errors": errors}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A model in a precision, and how it is timed; asked again for the next stage."""

    model: str
    precision: str
    logs: Sequence[Path]
    rounds: int
    number: int
    mode: str

    def stages(self) -> Iterator[Result]:
        case, device = case_of(self.model, self.precision), torch.device("cuda")
        yield from bench(case, gpu_here(), device, self.logs, self.rounds, self.number, self.mode)


def work(stages_of: Callable[[Request], Iterator[Result]] = Request.stages) -> None:
    """What the process of a request runs: it answers with the next stage each time that it is asked."""
    begun: list[Iterator[Result]] = []

    def answer(request: dict[str, Any]) -> Result | Failed:
        try:
            if not begun:
                begun.append(stages_of(Request(**request)))
            return next(begun[0])
        except Exception as error:
            return Failed("run_error", one_line(error))

    serve(answer)


def measure(
    requests: Sequence[Request],
    end: float,
    changed: Callable[[Result], None],
    failed: Callable[[str], None],
    entry: str = "bench_gpu.work",
) -> None:
    """`changed` with both stages of each of `requests` as they come, `failed` with a line of what did.

    Raises OutOfTime at `end`, by the monotonic clock.
    """
    for request in requests:
        what = f"{request.model}, {request.precision}"
        process = WorkerProcess(None, os.cpu_count() or 1, MEMORY_BYTES, entry)
        try:
            for _ in range(STAGES):
                # Not as the class, which is another in the module that a script is.
                process.send(asdict(request), "timing it", inf)
                ((_, message),) = next_messages([process], tick_until(end))
                if isinstance(message, Died | Failed):
                    failed(f"{what}: {message.status}: {message.reason}")
                    break
                changed(cast(Result, message))
        finally:
            process.stop()


def table(results: Sequence[Result]) -> str:
    """One row a model and precision; below it the geometric mean of each row's last ratio, tuned if it is.

    Times stand in rows that have nothing of the compiler.
    """
    columns = ("torch", "untuned", "tuned")
    head = ["model", "precision", f"{REFERENCE} (error)", *columns, "records"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    best: list[float] = []
    for result in results:
        cells = [result["model"], result["precision"], time_cell(result, REFERENCE)]
        if REFERENCE in result["times"]:
            errors = {name: f"; {error:.1e}" for name, error in result["errors"].items()}
            cells += [ratio_cell(result, name, REFERENCE, errors.get(name, "")) for name in columns]
            last = [name for name in columns if name in result["times"]][-1]
            best.append(statistics.median(ratios(result, last, REFERENCE)))
        else:
            cells += [time_cell(result, name) for name in columns]
        lines.append("| " + " | ".join([*cells, result["records"]]) + " |")
    mean = f"{statistics.geometric_mean(best):.2f}" if best else f"none, as {REFERENCE} has no times"
    return "\n".join([*lines, "", f"tcomp's geometric mean: {mean}"])


def time_cell(result: Result, name: str) -> str:
    """The median, and the error; a dash for what did not run."""
    if name not in result["times"]:
        return "-"
    return f"{statistics.median(result['times'][name]) * 1e6:.0f} us ({result['errors'][name]:.1e})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", choices=sorted(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float16", "float32"])
    parser.add_argument("--log", type=Path, action="append", help="default: tuning_logs/")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--number", type=int, default=20, help="runs in one turn")
    parser.add_argument("--mode", default="max-autotune", help="of torch.compile")
    add_seconds(parser, 600)
    add_json(parser)
    return parser.parse_args()


def main() -> int:
    options = parse()
    end, target = time.monotonic() + options.seconds, gpu_here()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logs = options.log or [ROOT / "tuning_logs"]
    requests = [
        Request(name, precision, logs, options.rounds, options.number, options.mode)
        for name in options.models
        for precision in options.precisions
    ]
    results: dict[tuple[str, str], Result] = {}

    def changed(result: Result) -> None:
        results[result["model"], result["precision"]] = result
        write_json(options.json, list(results.values()))
        times = ", ".join(f"{name} {time_cell(result, name)}" for name in result["times"])
        print(f"{result['model']}, {result['precision']}: {times}", flush=True)

    problems: list[str] = []

    def failed(problem: str) -> None:
        problems.append(problem)
        print(problem, flush=True)

    stopped = 0
    try:
        measure(requests, end, changed, failed)
    except OutOfTime:
        print("out of time")
    except KeyboardInterrupt:
        print("interrupted")
        stopped = 130
    said = f"{target.description}, torch {torch.__version__}, numpy {np.__version__}"
    print(f"\n{said}\n\n{table(list(results.values()))}")
    return stopped or int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
