"""Time a compiled model, or a model compiled on the spot, beside its peers.

The model and its peers run in turns, so that a change of the machine's speed meets all of them; medians
are quoted, and the ratio of each to the first peer in the same rounds.

With --static nothing runs here: the model, its weights, a random input and the outputs that it must give
become one executable that any Linux or Android device of the target's architecture runs from a shell, for
example after `adb push FILE /data/local/tmp`. It compares its outputs first, then prints times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tcomp.api import Compiled, compile_benchmark
from tcomp.api import compile as compile_model
from tcomp.cli._options import (
    add_logs,
    add_model,
    add_precision,
    add_target,
    add_threads,
    input_shapes,
    positive,
    size_text,
)
from tcomp.cli.run import made_inputs
from tcomp.codegen.machine import measure_machine
from tcomp.errors import UsageError
from tcomp.profiling import StepProfile, profile, step_facts, table
from tcomp.runtime import Model, load
from tcomp.runtime.peers import PEERS
from tcomp.target.parse import parse_targets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_target(parser, several=True)
    add_precision(parser)
    add_logs(parser)
    add_threads(parser)
    parser.add_argument(
        "--against", metavar="PEER,PEER", default="", help=f"also run the model in {', '.join(PEERS)}"
    )
    parser.add_argument(
        "--rounds", metavar="N", type=positive, default=20, help="timed runs of each (default 20)"
    )
    parser.add_argument(
        "--per-op",
        action="store_true",
        help="show each step's time; of a model also its speed, share of the roofline, template",
    )
    parser.add_argument("--json", action="store_true", help="print times and steps as one JSON object")
    parser.add_argument(
        "--static", action="store_true", help="write a program that checks and times the model on a device"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the program that --static writes")


def run(arguments: argparse.Namespace) -> int:
    if arguments.static or arguments.output is not None:
        return _write_program(arguments)
    peers = [p for p in arguments.against.split(",") if p]
    unknown = [p for p in peers if p not in PEERS]
    if unknown:
        raise UsageError(f"unknown peer `{unknown[0]}`; one of {', '.join(PEERS)}")
    path = Path(arguments.model)
    if peers and path.suffix != ".onnx":
        raise UsageError(f"peers run .onnx files, not `{path}`; give the model instead of the artifact")
    with ExitStack() as stack:
        model, compiled = _model(arguments, path, stack)
        inputs = made_inputs(model, None, "random")
        runners: dict[str, Callable[[], object]] = {"tcomp": lambda: model(**inputs)}
        runners |= {p: PEERS[p](path, inputs, arguments.threads) for p in peers}
        times = interleaved(runners, arguments.rounds)
        steps, whole = _per_op(arguments, model, inputs, compiled) if arguments.per_op else ([], 0.0)
    report: dict[str, Any] = {name: summary(seconds, times["tcomp"]) for name, seconds in times.items()}
    if arguments.json:
        print(json.dumps({"times": report, "steps": [s.to_json() for s in steps]}))
        return 0
    for name, facts in report.items():
        ratio = "" if name == "tcomp" else f"   tcomp/{name} {facts['tcomp_ratio']:.3f}"
        print(f"{name:12} median {facts['median'] * 1e3:9.3f} ms, min {facts['min'] * 1e3:9.3f} ms{ratio}")
    if arguments.per_op:
        print(table(steps, whole))
    return 0


def _write_program(arguments: argparse.Namespace) -> int:
    if not arguments.static or arguments.output is None:
        raise UsageError("--static and -o go together: `--static -o FILE` writes a program")
    if arguments.against or arguments.per_op or arguments.model.endswith(".so"):
        raise UsageError("--static takes a model, and neither --against nor --per-op: nothing runs here")
    choices = compile_benchmark(
        arguments.model,
        arguments.output,
        arguments.target,
        arguments.log,
        input_shapes(arguments),
        arguments.threads,
        arguments.precision,
    )
    nbytes = arguments.output.stat().st_size
    if arguments.json:
        print(json.dumps({"program": str(arguments.output), "bytes": nbytes, "tuned": choices.tuned}))
    else:
        print(f"{arguments.output}: {size_text(nbytes)}, {choices}; run it on the device, --help explains it")
    return 0


def interleaved(runners: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each runner in each round, all of them running once a round, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds + 2):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner()
            if number >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def summary(seconds: list[float], ours: list[float]) -> dict[str, float]:
    """Median and minimum, and the median of the round-by-round ratios of our time to this one."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "tcomp_ratio": statistics.median(a / b for a, b in zip(ours, seconds, strict=True)),
    }


def _per_op(
    arguments: argparse.Namespace, model: Model, inputs: Mapping[str, Any], compiled: Compiled | None
) -> tuple[list[StepProfile], float]:
    """Profiles of the steps, and seconds of a whole run. An artifact does not know what its steps compute."""
    facts = None
    if compiled is not None:
        machine = measure_machine(arguments.threads)
        targets = {target.variant: target for target in parse_targets(arguments.target)}
        program, choices = compiled.report.programs[model.variant], compiled.choices[model.variant]
        facts = step_facts(program, targets[model.variant], choices.config_of, machine)
    return profile(model, inputs, arguments.rounds, facts)


def _model(arguments: argparse.Namespace, path: Path, stack: ExitStack) -> tuple[Model, Compiled | None]:
    """The loaded model, and what is known from compiling it, unless it is an artifact already."""
    if path.suffix == ".so":
        return stack.enter_context(load(path, threads=arguments.threads)), None
    library = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.so"
    compiled = compile_model(
        arguments.model,
        library,
        arguments.target,
        arguments.log,
        input_shapes(arguments),
        threads=arguments.threads,
        precision=arguments.precision,
    )
    model = stack.enter_context(load(library, threads=arguments.threads))
    print(compiled.choices[model.variant], compiled.precision, sep="\n", file=sys.stderr)
    return model, compiled
