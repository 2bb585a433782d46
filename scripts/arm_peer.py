"""Run a model in another runtime, one thread, float32: a program of its own for each of them.

    build/arm64-python/python scripts/arm_peer.py onnxruntime models/resnet50.onnx inputs.npz 2

`count_arm_peers.py` starts it with a Python for ARM. It runs the model as often as the last argument says,
and prints the runtime's version and what the magnitudes of the first output add up to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from converted_models import Inputs, Run, litert_run, ncnn_run


def onnxruntime(model: Path, inputs: Inputs) -> Run:
    """`model` is an ONNX file."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(inputs))[0]


def mnn(model: Path, inputs: Inputs) -> Run:
    """`model` is a file that MNN's converter wrote."""
    import MNN as runtime

    layout = runtime.Tensor_DimensionType_Caffe
    types = {"float32": runtime.Halide_Type_Float, "int32": runtime.Halide_Type_Int}
    interpreter = runtime.Interpreter(str(model))
    session = interpreter.createSession({"backend": "CPU", "numThread": 1, "precision": "high"})
    tensors = interpreter.getSessionInputAll(session)
    for name, array in inputs.items():
        interpreter.resizeTensor(tensors[name], array.shape)
    interpreter.resizeSession(session)
    tensors = interpreter.getSessionInputAll(session)
    kept, copies = list[Any](), list[tuple[Any, Any]]()
    for name, array in inputs.items():
        values = array.astype(np.int32) if array.dtype == np.int64 else array  # MNN has no int64
        kept.append(values)  # a tensor points to them
        copies.append((tensors[name], runtime.Tensor(values.shape, types[values.dtype.name], values, layout)))

    def run(alive: object = kept) -> Any:
        for tensor, values in copies:  # a run takes the memory of the inputs for other things
            tensor.copyFrom(values)
        interpreter.runSession(session)
        output = next(iter(interpreter.getSessionOutputAll(session).values()))
        return output.getNumpyData()

    return run


RUNTIMES: dict[str, tuple[str, Callable[[Path, Inputs], Run]]] = {
    "onnxruntime": ("onnxruntime", onnxruntime),
    "ncnn": ("ncnn", partial(ncnn_run, threads=1)),
    "mnn": ("MNN", mnn),
    "litert": ("ai-edge-litert", partial(litert_run, threads=1)),
}
"""The package on PyPI, and what loads a model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runtime", choices=list(RUNTIMES))
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path, help="an .npz file")
    parser.add_argument("runs", type=int)
    arguments = parser.parse_args()
    package, load = RUNTIMES[arguments.runtime]
    with np.load(arguments.inputs) as file:
        run = load(arguments.model, dict(file))
    total = 0.0
    for _ in range(arguments.runs):
        total = float(np.sum(np.abs(run()), dtype=np.float64))
    print(version(package), f"{total:.9g}")


if __name__ == "__main__":
    main()
