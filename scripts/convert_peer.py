"""Write a model in the format of another runtime, for `count_arm_peers.py`.

    PYTHON scripts/convert_peer.py litert models/resnet50.onnx inputs.npz resnet50.tflite

ncnn and LiteRT take the PyTorch module that `models/NAME.onnx` was exported from, through pnnx and
litert_torch, which their PYTHON has; MNN takes the ONNX file, through the converter in its package.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peers import write_litert, write_ncnn


def write_mnn(model: Path, inputs: Mapping[str, Any], threads: int, path: Path) -> None:
    """Write `path`, a model that MNN reads, with the shapes of `inputs` where the ONNX file has them."""
    import _tools  # MNN's converter is a module of this name

    options = {"-f": "ONNX", "--modelFile": str(model), "--MNNModel": str(path), "--bizCode": "tcomp"}
    _tools.mnnconvert(["mnnconvert", *(word for pair in options.items() for word in pair)])


WRITERS = {"ncnn": write_ncnn, "litert": write_litert, "mnn": write_mnn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runtime", choices=list(WRITERS))
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path, help="an .npz file")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    with np.load(arguments.inputs) as file:
        inputs = dict(file)
    write = WRITERS[arguments.runtime]
    write(arguments.model.resolve(), inputs, 1, arguments.output.resolve())
    if not arguments.output.exists():
        raise SystemExit(f"{arguments.runtime} did not convert {arguments.model}")


if __name__ == "__main__":
    main()
