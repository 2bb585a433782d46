"""Say what is in a compiled library, of this or another machine, without loading it.

`--size` divides its bytes: machine code of each kernel and of the runtime, weights, and the rest (names,
tables for the loader and for unwinding stacks, constants, padding).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tcomp.cli._options import size_text
from tcomp.runtime.description import Artifact, Description, describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifact", metavar="ARTIFACT", type=Path, help="a library that `tcomp compile` wrote"
    )
    parser.add_argument(
        "--size", action="store_true", help="bytes of each kernel, largest first, and of all else"
    )
    parser.add_argument("--json", action="store_true", help="print all facts and sizes as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    artifact = describe(arguments.artifact)
    if arguments.json:
        facts = {"machine": artifact.machine, "abi_version": artifact.abi_version, "needed": artifact.needed}
        about = artifact.description
        derived = {"shared_bytes": about.shared_bytes, "tensor_bytes": about.tensor_bytes}
        print(json.dumps({**facts, **about.to_json(), **derived, "sizes": artifact.sizes.to_json()}))
        return 0
    print("\n".join(size_table(artifact) if arguments.size else facts_table(artifact)))
    return 0


def facts_table(artifact: Artifact) -> Iterator[str]:
    about = artifact.description
    place = "embedded" if about.weights_embedded else "separate"
    rows = [
        ("name", about.name),
        ("target", f"{about.target} ({about.isa}), for {artifact.machine}"),
        ("features", " ".join(about.features) or "none beyond the architecture's"),
        ("ABI", str(artifact.abi_version)),
        ("needs", " ".join(artifact.needed) or "no library"),
        *(("input", f"{t.name}: {t}") for t in about.inputs),
        *(("output", f"{t.name}: {t}") for t in about.outputs),
        ("arena", size_text(about.arena_bytes)),
        ("weights", f"{size_text(about.weights_bytes)}, {place}"),
        *(
            [("packed", f"{size_text(about.packed_bytes)}, by the GPU when a context is created")]
            if about.packed_bytes
            else []
        ),
        *_context_rows(about),
        (
            "file",
            f"{size_text(artifact.sizes.file)}, without weights {size_text(artifact.sizes.without_weights)}",
        ),
        ("kernels", str(len(about.kernels))),
    ]
    yield from (f"{key:9} {value}" for key, value in rows)
    yield from (f"step {number:4} {label}" for number, label in enumerate(about.steps))


def _context_rows(about: Description) -> list[tuple[str, str]]:
    """What contexts take of the memory of the device that they run on."""
    arena = size_text(about.arena_bytes)
    if not about.is_for_gpu:
        return [("context", f"{arena} each, and workspaces of kernels")]
    tensors, shared = size_text(about.tensor_bytes), size_text(about.shared_bytes)
    return [
        (
            "context",
            f"{arena} of the GPU's memory each, and {tensors} if inputs and outputs are in the CPU's",
        ),
        ("shared", f"{shared} of the GPU's memory, once for all contexts that share weights"),
    ]


def size_table(artifact: Artifact) -> Iterator[str]:
    """Bytes of the kernels, largest first, then of the parts of the file."""
    sizes, kernels = artifact.sizes, artifact.description.kernels
    for symbol, nbytes in sorted(kernels.items(), key=lambda item: (-item[1], item[0])):
        yield f"{nbytes:12,}  {symbol}"
    yield ""
    yield f"{sizes.kernels:12,}  code of {len(kernels)} kernels"
    yield f"{sizes.runtime:12,}  code of the runtime"
    yield f"{sizes.rest:12,}  rest"
    yield f"{sizes.without_weights:12,}  without weights"
    yield f"{sizes.weights:12,}  weights"
    yield f"{sizes.file:12,}  file"
