"""Whole models on this CPU: tcomp, tuned and untuned, beside other runtimes, in turns.

    python scripts/models.py resnet50 mobilenetv2_100
    python scripts/bench_cpu.py resnet50 mobilenetv2_100
    python scripts/bench_cpu.py resnet50 --threads 2 --peers onnxruntime,openvino,ncnn --json results.json
    python scripts/bench_cpu.py --from results.json --picture results.svg

Every runtime holds the model in a process of its own. In each round all of them run once, in the order of
the table, so that a change of the machine's speed meets all; a column quotes the median of its ratios to
ONNX Runtime in the same rounds (below 1 is faster) and their quartiles. Runtimes that are not installed or
cannot run a model are named with their reason. `--peer-python` is an interpreter that has them, if this
one has not. Records come from `tuning_logs/` unless --log names others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from models import MODELS, ROOT
from peers import RUNTIMES, Peer
from tcomp.api import static_kernels
from tcomp.codegen.artifact import compile_graph
from tcomp.frontend.onnx import import_onnx
from tcomp.relay.graph import Graph
from tcomp.relay.types import numpy_dtype
from tcomp.runtime.fill import fill
from tcomp.target.host import host_target
from tcomp.transform.precision import PRECISIONS, Precision
from tcomp.tuner.choices import choose_configs

REFERENCE = "onnxruntime"
VARIANTS = ("untuned", "tuned")


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


def compile_variants(
    name: str, logs: Sequence[Path], threads: int, folder: Path, precision: Precision = "exact"
) -> tuple[dict[str, Path], Path, dict[str, Any]]:
    """The libraries by variant, the file of inputs, and facts about compiling."""
    start = time.perf_counter()
    graph = import_onnx(ROOT / "models" / f"{name}.onnx", MODELS[name].input_shapes)
    target = host_target()
    optimized = static_kernels(graph, target, precision)
    imported = time.perf_counter() - start
    choices = choose_configs(optimized, target, logs, threads)
    inputs = folder / f"{name}.npz"
    np.savez(inputs, **random_inputs(name, graph))
    libraries: dict[str, Path] = {}
    facts: dict[str, Any] = {"tuned": choices.tuned, "kernels": choices.tuned + len(choices.missing)}
    for variant, config_of in zip(VARIANTS, (None, choices.config_of), strict=True):
        start = time.perf_counter()
        report = compile_graph(optimized, target, folder / f"{name}_{variant}.so", config_of)
        facts["compile_seconds"] = imported + time.perf_counter() - start
        facts["arena_over_bound"] = report.program.arena_bytes / max(1, report.program.live_bytes)
        libraries[variant] = report.library
    return libraries, inputs, facts


def bench(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times in seconds of every runtime in every round."""
    logs = options.log or [ROOT / "tuning_logs"]
    libraries, inputs, facts = compile_variants(name, logs, options.threads, folder, options.precision)
    onnx = ROOT / "models" / f"{name}.onnx"
    with ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for runtime in [REFERENCE, *(p for p in options.peers if p != REFERENCE), *VARIANTS]:
            ours = runtime in VARIANTS
            python = sys.executable if ours or runtime == REFERENCE else options.peer_python
            kind, path = ("tcomp", libraries[runtime]) if ours else (runtime, onnx)
            peers[runtime] = stack.enter_context(closing(Peer(kind, path, inputs, options.threads, python)))
        running = {n: p for n, p in peers.items() if not p.absent}
        times: dict[str, list[float]] = {n: [] for n in running}
        for _ in range(options.rounds):
            for runtime, peer in running.items():
                times[runtime].append(peer.seconds(options.seconds))
        versions = {n: p.version for n, p in running.items()}
        absent = {n: p.absent for n, p in peers.items() if p.absent}
    for required in (REFERENCE, *VARIANTS):
        if required in absent:
            raise SystemExit(f"{name}: {required} does not run: {absent[required]}")
    return {"model": name, "threads": options.threads, "precision": options.precision, "times": times,
            "versions": versions, "absent": absent, **facts}  # fmt: skip


def ratios(result: Mapping[str, Any], runtime: str, reference: str = REFERENCE) -> list[float]:
    """Of one runtime to another, round by round."""
    times = result["times"]
    return [a / b for a, b in zip(times[runtime], times[reference], strict=True)]


def ratio_cell(result: Mapping[str, Any], runtime: str, reference: str = REFERENCE, note: str = "") -> str:
    """The median of these ratios and their quartiles, with a `note`; a dash for what did not run."""
    if runtime not in result["times"]:
        return "-"
    low, middle, high = statistics.quantiles(ratios(result, runtime, reference), n=4)
    return f"**{middle:.2f}** ({low:.2f}-{high:.2f}{note})"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """One row a model, one column a runtime: median ratio and its quartiles."""
    columns = list(dict.fromkeys(n for r in results for n in r["times"] if n != REFERENCE))
    lines = ["| model | threads | ONNX Runtime | " + " | ".join(columns) + " | records | compile | arena |",
             "|---" * (len(columns) + 6) + "|"]  # fmt: skip
    for result in results:
        cells = [ratio_cell(result, column) for column in columns]
        milliseconds = statistics.median(result["times"][REFERENCE]) * 1e3
        lines.append(
            f"| {result['model']} | {result['threads']} | {milliseconds:.1f} ms | {' | '.join(cells)} "
            f"| {result['tuned']}/{result['kernels']} | {result['compile_seconds']:.1f} s "
            f"| {result['arena_over_bound']:.3f} |"
        )
    reasons = {(r["model"], n, why) for r in results for n, why in r["absent"].items()}
    lines += [f"\n{runtime} does not run {model}: {why}" for model, runtime, why in sorted(reasons)]
    return "\n".join(lines)


COLOURS = ("#b8b8b8", "#8da0cb", "#66c2a5", "#fc8d62", "#a6d854", "#e78ac3", "#ffd92f", "#1f4e79")


def picture(results: Sequence[Mapping[str, Any]]) -> str:
    """Bars of the median ratios as SVG, one group a model."""
    names = list(dict.fromkeys(n for r in results for n in r["times"]))
    colour = {n: COLOURS[i % len(COLOURS)] for i, n in enumerate(names)}
    width, bar, gap, left, scale = 720, 14, 22, 170, 320
    parts: list[str] = []
    y = 20
    for result in results:
        label = f"{result['model']}, {result['threads']} thread{'s' if result['threads'] > 1 else ''}"
        parts.append(f'<text x="4" y="{y + bar}">{label}</text>')
        for name in (n for n in names if n in result["times"]):
            ratio = statistics.median(ratios(result, name))
            length = round(min(ratio, 1.5) * scale)
            parts.append(
                f'<rect x="{left}" y="{y}" width="{length}" height="{bar - 3}" fill="{colour[name]}"/>'
            )
            parts.append(f'<text x="{left + length + 4}" y="{y + bar - 4}">{ratio:.2f} {name}</text>')
            y += bar
        y += gap
    parts.append(f'<text x="{left}" y="12">time relative to ONNX Runtime, shorter is faster</text>')
    parts.append(f'<path d="M{left + scale} 16V{y - gap}" stroke="#444" stroke-dasharray="3"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-size="11">'
    return "\n".join([head, *parts, "</svg>\n"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--log", type=Path, action="append", help="default: tuning_logs/")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, default="exact", help="of tcomp's libraries")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.1, help="of runs in one turn of one runtime")
    parser.add_argument("--peers", default=REFERENCE, help=f"of {', '.join(RUNTIMES)}; default {REFERENCE}")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has the peers")
    parser.add_argument("--json", type=Path, help="write every time measured")
    parser.add_argument("--from", dest="results", type=Path, help="a file of --json, instead of measuring")
    parser.add_argument("--picture", type=Path, help="write the bars as SVG")
    options = parser.parse_args()
    options.peers = [p for p in options.peers.split(",") if p]
    if unknown := [m for m in options.models if m not in MODELS]:
        parser.error(f"unknown model `{unknown[0]}`; one of {', '.join(sorted(MODELS))}")
    if unknown := [p for p in options.peers if p not in RUNTIMES]:
        parser.error(f"unknown peer `{unknown[0]}`; one of {', '.join(RUNTIMES)}")
    if bool(options.models) == bool(options.results):
        parser.error("name models to measure, or a file with --from")
    return options


def main() -> None:
    options = parse()
    if options.results:
        results = json.loads(options.results.read_text())
    else:
        results = []
        with tempfile.TemporaryDirectory() as folder:
            for name in options.models:
                results.append(bench(name, options, Path(folder)))
                print(f"{name}: done", file=sys.stderr)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results))
    if options.picture:
        options.picture.write_text(picture(results))


if __name__ == "__main__":
    main()
