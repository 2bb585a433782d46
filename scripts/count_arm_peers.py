"""Instructions of whole models on ARM, tcomp's beside those of other runtimes, exact, under qemu.

    python scripts/models.py resnet50 mobilenetv2_100
    python scripts/arm64_python.py --peers
    python scripts/count_arm_peers.py resnet50 mobilenetv2_100 --peer-python PYTHON

Runs ONNX Runtime, ncnn, MNN and LiteRT (XNNPACK) from their packages for ARM in float32, one thread, on the
inputs of `count_arm.py`, once and twice, and prints the difference as the instructions of one inference for
each multiply-add of a whole vector, as that does for tcomp with default configs. PYTHON, an interpreter with
torch, timm, transformers, pnnx and litert_torch, converts models for ncnn and LiteRT; without it they are
left out. A runtime is marked where the magnitudes of its first output add up to something else than tcomp's.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arm64_python import FOLDER, PYTHON
from count_arm import count, cpu_options, one_run, products, sample_inputs
from models import MODELS, ROOT
from tcomp.codegen.emulation import InstructionCounter
from tcomp.frontend.onnx import import_onnx
from tcomp.target.parse import parse_target
from tcomp.target.target import Target

SCRIPTS = Path(__file__).parent
RUNTIMES = ("onnxruntime", "ncnn", "mnn", "litert")
_TOLERANCE = 1e-3


class Absent(Exception):
    """A runtime does not run a model; the text says why."""


@dataclass(frozen=True)
class Peers:
    """Python with the runtimes for ARM in `root` and `site`, and the interpreter that converts models."""

    target: Target
    folder: Path
    converter: str | None

    def instructions(self, runtime: str, model: Path, inputs: Path, work: Path) -> tuple[int, str]:
        """Instructions of one inference, and the runtime's version and sum of magnitudes.

        Raises Absent.
        """
        converted = self._converted(runtime, model, inputs, work)
        root = self.folder / "root"
        libraries = ":".join(str(root / place / "lib" / "aarch64-linux-gnu") for place in ("usr", ""))
        settings = {
            "LD_LIBRARY_PATH": libraries, "PYTHONHOME": root / "usr", "PYTHONPATH": self.folder / "site",
            "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        words = [word for key, value in settings.items() for word in ("-E", f"{key}={value}")]
        options = [*cpu_options(self.target), "-L", str(root), *words]
        counter = InstructionCounter(self.target, work, caches=False, options=options)
        python = str(root / "usr" / "bin" / f"python{PYTHON}")
        script = str(SCRIPTS / "arm_peer.py")
        counts, said = one_run(counter, [python, script, runtime, str(converted), str(inputs)])
        return sum(counts.values()), said.strip().splitlines()[-1]

    def _converted(self, runtime: str, model: Path, inputs: Path, work: Path) -> Path:
        """The model in the format of a runtime."""
        if runtime == "onnxruntime":
            return model
        python = str(self.folder / "python") if runtime == "mnn" else self.converter
        if python is None:
            raise Absent("no --peer-python")
        output = work / runtime
        command = [python, str(SCRIPTS / "convert_peer.py"), runtime, str(model), str(inputs), str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Absent((done.stderr.strip().splitlines() or ["not converted"])[-1])
        return output


def row(name: str, target: Target, peers: Peers, runtimes: Sequence[str]) -> list[str]:
    """Cells of a model: instructions for each multiply-add of a whole vector, of tcomp and each runtime."""
    model, shapes = ROOT / "models" / f"{name}.onnx", MODELS[name].input_shapes
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        graph = import_onnx(model, shapes)
        inputs, arrays = work / "inputs.npz", sample_inputs(graph, name)
        np.savez(inputs, **arrays)
        report, found, expected = count(graph, target, work, arrays)
        wanted = products(report, target)
        cells = [f"{sum(found.values()) / wanted:.2f}"]
        for runtime in runtimes:
            try:
                instructions, said = peers.instructions(runtime, model, inputs, work)
            except Absent as reason:
                cells.append(f"({reason})")
                continue
            total = float(said.split()[-1])
            agrees = math.isclose(total, expected, rel_tol=_TOLERANCE)
            wrong = f" (outputs add up to {total}, not {expected})"
            cells.append(f"{instructions / wanted:.2f}{'' if agrees else wrong}")
    return [name, *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names of models in models/")
    parser.add_argument("--target", default="cortex-a76", help="a core, system or board")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="comma-separated")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what arm64_python.py wrote")
    parser.add_argument("--peer-python", help="the interpreter that converts models")
    arguments = parser.parse_args()
    target, runtimes = parse_target(arguments.target), arguments.runtimes.split(",")
    peers = Peers(target, arguments.folder.resolve(), arguments.peer_python)
    print(f"| {arguments.target} | {' | '.join(['tcomp', *runtimes])} |\n|{'---|' * (2 + len(runtimes))}")
    for name in arguments.models:
        print(f"| {' | '.join(row(name, target, peers, runtimes))} |", flush=True)


if __name__ == "__main__":
    main()
