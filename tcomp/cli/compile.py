"""Compile a model to a shared library with a plain C interface.

Writes the library, a C header beside it, and tcomp.h. Kernels without a record in a --log use the
default config of the algorithm that should be fastest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tcomp.api import compile as compile_model
from tcomp.cli._options import (
    add_logs,
    add_model,
    add_precision,
    add_target,
    add_threads,
    input_shapes,
    size_text,
)
from tcomp.cli.run import read_arrays


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_target(parser, several=True)
    add_precision(parser)
    add_logs(parser)
    add_threads(parser, "use records that were measured with so many threads")
    parser.add_argument(
        "-o", "--output", metavar="FILE.so", type=Path, required=True, help="the library to write"
    )
    parser.add_argument(
        "--bundle",
        action="store_true",
        help="write the folder FILE.so instead: objects, C sources, weights and a CMakeLists.txt that "
        "builds the library where a compiler for the target is",
    )
    parser.add_argument(
        "--runtime",
        choices=("threads", "serial", "freestanding"),
        default="threads",
        help="serial: a library that starts no threads; freestanding: an object FILE.o for a program without "
        "a system, which needs no C library and allocates nothing",
    )
    parser.add_argument(
        "--weights",
        choices=("embed", "separate"),
        default="embed",
        help="inside the library, or in FILE.weights",
    )
    parser.add_argument(
        "--own-weights",
        action="store_true",
        help="with several targets: pack weights for each as suits it best, not for all in one way",
    )
    parser.add_argument(
        "--require-tuned", action="store_true", help="exit 1 when a tunable kernel has no record"
    )
    parser.add_argument(
        "--tolerance",
        metavar="R",
        type=float,
        help="with --precision fast or tf32: error of an output allowed relative to its scale (default 1e-2 "
        "in float16, else 2e-2)",
    )
    parser.add_argument(
        "--check-input",
        metavar="IN.npz",
        type=Path,
        help="with --precision fast or tf32: inputs by name to compare with float32 on; others are random",
    )
    parser.add_argument(
        "--bindings",
        metavar="LIST",
        type=lambda text: text.split(","),
        default=[],
        help="sources beside the header that call the library: jni[:PACKAGE] (Kotlin), swift; with commas",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    compiled = compile_model(
        arguments.model,
        arguments.output,
        arguments.target,
        arguments.log,
        input_shapes(arguments),
        weights=arguments.weights,
        require_tuned=arguments.require_tuned,
        threads=arguments.threads,
        precision=arguments.precision,
        inputs=None if arguments.check_input is None else read_arrays(arguments.check_input),
        tolerance=arguments.tolerance,
        bindings=arguments.bindings,
        own_weights=arguments.own_weights,
        form="bundle" if arguments.bundle else "library",
        runtime=arguments.runtime,
    )
    seconds = time.perf_counter() - start
    report, program = compiled.report, compiled.report.program
    choices = next(iter(compiled.choices.values()))
    for problem in choices.problems:
        print(f"skipped {problem}", file=sys.stderr)
    facts = {
        "library": str(report.library),
        "library_bytes": report.library_bytes,
        "variants": list(compiled.choices),
        "kernels": len(program.kernels),
        "steps": len(program.steps),
        "streams": program.streams,
        "tuned": choices.tuned,
        "simulated": len(choices.simulated),
        "default": len(choices.missing),
        "arena_bytes": program.arena_bytes,
        "arena_lower_bound": program.live_bytes,
        "weights_bytes": program.weights_bytes,
        "precision": compiled.precision,
        "bindings": [str(path) for path in compiled.bindings],
        "seconds": round(seconds, 3),
    }
    if arguments.json:
        print(json.dumps(facts))
        return 0
    alone = f", {choices}" if len(compiled.choices) == 1 else ""
    streams = f" in {program.streams} streams" if program.streams > 1 else ""
    print(f"{report.library}: {size_text(report.library_bytes)}, {len(program.steps)} steps{streams}{alone}")
    for name, chosen in compiled.choices.items() if not alone else ():
        print(f"{name}: {chosen}")
    if compiled.precision:
        print(compiled.precision)
    if compiled.bindings:
        print(f"bindings {', '.join(path.name for path in compiled.bindings)}")
    print(
        f"arena {size_text(program.arena_bytes)} (lower bound {size_text(program.live_bytes)}), "
        f"weights {size_text(program.weights_bytes)}, {seconds:.1f} s"
    )
    return 0
