"""The command line: one module per subcommand, found by folder.

A subcommand's module is named after it; the first line of its docstring is its help text, which is read
without importing the module, so that `tcomp --help` never waits for TVM. It defines
`add_arguments(parser)` and `run(arguments) -> int`, the exit status.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tcomp
from tcomp.errors import TcompError

_FOLDER = Path(__file__).parent


def commands() -> dict[str, str]:
    """Name and one-line help of every subcommand."""
    found: dict[str, str] = {}
    for path in sorted(_FOLDER.glob("[a-z]*.py")):
        summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = summary.partition("\n")[0]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    0: done; 1: the requested check failed; 2: bad usage or input; 130: interrupted, nothing lost.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser, subparsers = _parser()
    chosen = next((a for a in argv if not a.startswith("-")), None)
    try:
        if chosen in subparsers:
            module = importlib.import_module(f"tcomp.cli.{chosen}")
            subparsers[chosen].description = module.__doc__
            module.add_arguments(subparsers[chosen])
            subparsers[chosen].set_defaults(run=module.run)
        arguments = parser.parse_args(argv)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except TcompError as error:
        print(f"tcomp {chosen}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"tcomp {chosen}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`tcomp opt model.onnx | head`).
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        what = error.filename or "input or output"
        print(f"tcomp {chosen}: {what} failed: {error.strerror or error}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"tcomp {chosen}: out of memory; give smaller shapes, or a machine with more", file=sys.stderr)
        return 2


def _drop_output() -> None:
    """Send what is left in the buffer of stdout nowhere: Python would complain about it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="tcomp",
        description="A tensor compiler with schedule autotuning: ONNX in, a tuned shared library out.",
        epilog="`tcomp COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"tcomp {tcomp.__version__}")
    group = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    formatter = argparse.RawDescriptionHelpFormatter
    return parser, {
        name: group.add_parser(name, help=summary, formatter_class=formatter)
        for name, summary in commands().items()
    }
