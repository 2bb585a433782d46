"""Golden texts of the passes: `tests/golden/<pass>/<case>.relay`.

A file holds the pipeline in its first line (`## <pipeline>`), the graph before, a line `## becomes`, and the
graph after. Weights that the text names are made from their names, so the files need no data.
`python tests/transform/golden.py` rewrites the second half of every file from the first.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcomp.relay.graph import Graph
from tcomp.relay.parser import parse_graph
from tcomp.relay.printer import content_hash, print_graph
from tcomp.relay.types import Array
from tcomp.transform.pass_ import parse_pipeline
from tcomp.transform.pipeline import run_passes

FOLDER = Path(__file__).resolve().parent.parent / "golden"
BECOMES = "## becomes\n"
_WEIGHT = re.compile(r"^  @(?P<name>[\w.]+): f32\[(?P<shape>[\d,]*)\] #(?P<hash>\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One golden file, read and run."""

    path: Path
    pipeline: str
    before: Graph
    after: Graph
    expected: str

    @property
    def text(self) -> str:
        """What the file should hold."""
        return f"## {self.pipeline}\n{print_graph(self.before)}{BECOMES}{print_graph(self.after)}"


def cases() -> list[Path]:
    """Every golden file."""
    return sorted(FOLDER.glob("*/*.relay"))


def run(path: Path) -> Case:
    """Read a golden file and run its pipeline on the first graph."""
    text = path.read_text()
    first, _, expected = text.partition(BECOMES)
    head, _, body = first.partition("\n")
    weights = {m["name"]: _weight(m["name"], m["shape"]) for m in _WEIGHT.finditer(body)}
    hashed = _WEIGHT.sub(lambda m: m[0].replace(m["hash"], content_hash(weights[m["name"]])), body)
    before = parse_graph(hashed, weights, str(path))
    pipeline = head.removeprefix("## ")
    return Case(path, pipeline, before, run_passes(before, parse_pipeline(pipeline)), expected)


def _weight(name: str, shape: str) -> Array:
    extents = tuple(int(d) for d in shape.split(",") if d)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (rng.integers(1, 64, extents) / 32).astype(np.float32)


def main() -> None:
    for path in cases():
        path.write_text(run(path).text)


if __name__ == "__main__":
    main()
