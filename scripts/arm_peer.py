"""Run a model in another runtime, one thread, float32: a program of its own for each of them.

    build/arm64-python/python scripts/arm_peer.py onnxruntime models/resnet50.onnx inputs.npz 2

`count_arm_peers.py` starts it with a Python for ARM. It runs the model as often as the last argument says,
and prints the runtime's version and what the magnitudes of the first output add up to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Inputs = Mapping[str, Any]
"""Arrays by name, in the order of the model's inputs."""
Run = Callable[[], Any]
"""Computes the first output."""


def onnxruntime(model: Path, inputs: Inputs) -> Run:
    """`model` is an ONNX file."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(inputs))[0]


def ncnn(model: Path, inputs: Inputs) -> Run:
    """`model` is a folder that pnnx wrote."""
    import ncnn as runtime

    net = runtime.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(model / "model.ncnn.param")) or net.load_model(str(model / "model.ncnn.bin")):
        raise SystemExit(f"ncnn does not load {model}")
    arrays = [runtime.Mat(np.ascontiguousarray(array[0])).clone() for array in inputs.values()]

    def run() -> Any:
        extractor = net.create_extractor()
        for number, array in enumerate(arrays):
            extractor.input(f"in{number}", array)
        status, output = extractor.extract("out0")
        if status:
            raise SystemExit(f"ncnn does not run {model}: status {status}")
        return np.array(output)

    return run


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


def litert(model: Path, inputs: Inputs) -> Run:
    """XNNPACK's kernels; `model` is a file that litert_torch wrote."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    for place, array in zip(interpreter.get_input_details(), inputs.values(), strict=True):
        interpreter.set_tensor(place["index"], array.astype(place["dtype"]))
    output = interpreter.get_output_details()[0]["index"]

    def run() -> Any:
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run


RUNTIMES: dict[str, tuple[str, Callable[[Path, Inputs], Run]]] = {
    "onnxruntime": ("onnxruntime", onnxruntime),
    "ncnn": ("ncnn", ncnn),
    "mnn": ("MNN", mnn),
    "litert": ("ai-edge-litert", litert),
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
