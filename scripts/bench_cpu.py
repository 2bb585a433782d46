"""Whole models on one CPU against ONNX Runtime: tuned and untuned, in turns, medians of the ratios.

    python scripts/models.py resnet50 mobilenetv2_100
    python scripts/bench_cpu.py resnet50 mobilenetv2_100 --threads 1
    python scripts/bench_cpu.py resnet50 --log resnet50.jsonl --json

Each round runs ONNX Runtime, the untuned and the tuned library once, in that order, so that a change of the
machine's speed meets all three. Records come from `tuning_logs/` unless --log names others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models import MODELS, ROOT
from tcomp.api import choose_configs, static_kernels
from tcomp.cli.bench import interleaved, summary
from tcomp.codegen.artifact import compile_graph
from tcomp.frontend.onnx import import_onnx
from tcomp.relay.graph import Graph
from tcomp.relay.types import numpy_dtype
from tcomp.runtime import load
from tcomp.runtime.fill import fill
from tcomp.runtime.peers import onnxruntime_runner
from tcomp.target.host import host_target


def random_inputs(name: str, graph: Graph) -> dict[str, Any]:
    """Random arrays for the model's inputs; indices stay inside their tables."""
    rng = np.random.default_rng(0)
    limits = MODELS[name].integers
    return {
        v.name: rng.integers(0, limits[v.name], v.type.static_shape).astype(numpy_dtype(v.dtype))
        if v.name in limits
        else fill(v.type.static_shape, v.dtype, "random", rng)
        for v in graph.inputs
    }


def bench(name: str, logs: Sequence[Path], threads: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians in seconds and ratios to ONNX Runtime of one model, with compile times and arena."""
    path, target = ROOT / "models" / f"{name}.onnx", host_target()
    start = time.perf_counter()
    graph = import_onnx(path, MODELS[name].input_shapes)
    optimized = static_kernels(graph, target)
    imported = time.perf_counter() - start
    choices = choose_configs(optimized, target, logs, threads)
    inputs = random_inputs(name, graph)
    runners: dict[str, Callable[[], object]] = {"onnxruntime": onnxruntime_runner(path, inputs, threads)}
    compile_seconds: dict[str, float] = {}
    report = None
    for variant, config_of in (("untuned", None), ("tuned", choices.config_of)):
        start = time.perf_counter()
        report = compile_graph(optimized, target, folder / f"{name}_{variant}.so", config_of)
        compile_seconds[variant] = imported + time.perf_counter() - start
        model = load(report.library, threads=threads)
        runners[variant] = lambda model=model: model(*inputs.values())
    assert report is not None
    times = interleaved(runners, rounds)
    return {
        "model": name,
        "threads": threads,
        "onnxruntime": summary(times["onnxruntime"], times["onnxruntime"])["median"],
        **{v: summary(times[v], times[v])["median"] for v in ("untuned", "tuned")},
        **{
            f"{v}_ratio": summary(times["onnxruntime"], times[v])["tcomp_ratio"] for v in ("untuned", "tuned")
        },
        "kernels_tuned": choices.tuned,
        "kernels_default": len(choices.missing),
        "compile_seconds": compile_seconds["tuned"],
        "arena_over_bound": report.program.arena_bytes / max(1, report.program.live_bytes),
    }


def row(facts: Mapping[str, Any]) -> str:
    return (
        f"| {facts['model']} | {facts['threads']} | {facts['onnxruntime'] * 1e3:.2f} "
        f"| {facts['untuned'] * 1e3:.2f} ({facts['untuned_ratio']:.2f}) "
        f"| {facts['tuned'] * 1e3:.2f} ({facts['tuned_ratio']:.2f}) "
        f"| {facts['kernels_tuned']}/{facts['kernels_tuned'] + facts['kernels_default']} "
        f"| {facts['compile_seconds']:.1f} | {facts['arena_over_bound']:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", choices=sorted(MODELS), metavar="MODEL")
    parser.add_argument("--log", type=Path, action="append", help="default: tuning_logs/")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one JSON object a model")
    arguments = parser.parse_args()
    if not arguments.json:
        print("| model | threads | ONNX Runtime ms | untuned ms (ratio) | tuned ms (ratio) | tuned kernels "
              "| compile s | arena / bound |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            logs = arguments.log or [ROOT / "tuning_logs"]
            facts = bench(name, logs, arguments.threads, arguments.rounds, Path(folder))
            print(json.dumps(facts) if arguments.json else row(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
