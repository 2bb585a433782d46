"""Print a graph as Relay text after graph passes.

Without -p the whole pipeline that `compile` uses is run; `-p ''` runs none. `-o graph.relay` writes the
text there and the weights beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from tcomp.api import load_model
from tcomp.cli._options import add_model, add_precision, add_target, input_shapes
from tcomp.errors import UsageError
from tcomp.relay.graph import Graph
from tcomp.relay.printer import print_graph, save_graph
from tcomp.target.parse import parse_target
from tcomp.transform.pass_ import PASS_TYPES, Pass, parse_pipeline
from tcomp.transform.pipeline import default_passes, run_passes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, optional=True)
    add_target(parser)
    add_precision(parser)
    parser.add_argument("-p", "--passes", metavar="PIPELINE", help="`pass{option=value},pass`; default: all")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write here instead of printing")
    parser.add_argument("--list-passes", action="store_true", help="list all passes and stop")
    parser.add_argument("--stats", action="store_true", help="say on stderr what each pass did")
    parser.add_argument("--print-after-all", action="store_true", help="print the graph after each pass")


def run(arguments: argparse.Namespace) -> int:
    target = parse_target(arguments.target)
    if arguments.list_passes:
        for name, pass_type in PASS_TYPES.items():
            print(f"{name:32} {(pass_type.__doc__ or '').strip().splitlines()[0]}")
        return 0
    if arguments.model is None:
        raise UsageError("opt needs a MODEL, or --list-passes")
    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_file():
        raise UsageError(
            f"{arguments.output} is no file, which weights could be written beside; give another -o"
        )
    graph = load_model(arguments.model, input_shapes(arguments))

    def observe(item: Pass, before: Graph, after: Graph, stats: Mapping[str, int]) -> None:
        if arguments.stats:
            done = ", ".join(f"{k} {v}" for k, v in stats.items()) or "nothing"
            print(f"{item.name}: {len(before.nodes)} -> {len(after.nodes)} nodes; {done}", file=sys.stderr)
        if arguments.print_after_all and after is not before:
            print(f"## after {item.name}\n{print_graph(after)}")

    passes = (
        default_passes(target, arguments.precision)
        if arguments.passes is None
        else parse_pipeline(arguments.passes)
    )
    graph = run_passes(graph, passes, observe)
    if arguments.output is None:
        if not arguments.print_after_all:
            print(print_graph(graph), end="")
        return 0
    try:
        save_graph(graph, arguments.output)
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename}: {error.strerror}; give a file in a writable folder with room"
        ) from None
    return 0
