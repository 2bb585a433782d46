"""Models that other runtimes read from files of their own, in float32: what loads one and runs it.

`peers.py` times them, `arm_peer.py` runs them with a Python for ARM, which has numpy and the runtimes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Inputs = Mapping[str, Any]
"""Arrays by name, in the order of the model's inputs."""
Run = Callable[[], Any]
"""Computes the first output."""


def ncnn_run(model: Path, inputs: Inputs, threads: int) -> Run:
    """With Winograd and packed layouts, its defaults; `model` is a folder that pnnx wrote.

    Raises RuntimeError where ncnn does not load the model or, from the run, where it does not run it.
    """
    import ncnn as runtime

    net = runtime.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(model / "model.ncnn.param")) or net.load_model(str(model / "model.ncnn.bin")):
        raise RuntimeError(f"ncnn does not load {model}")
    arrays = [runtime.Mat(np.ascontiguousarray(array[0])).clone() for array in inputs.values()]

    def run() -> Any:
        extractor = net.create_extractor()
        for number, array in enumerate(arrays):
            extractor.input(f"in{number}", array)
        status, output = extractor.extract("out0")
        if status:
            raise RuntimeError(f"ncnn does not run {model}: status {status}")
        return np.array(output)

    return run


def litert_run(model: Path, inputs: Inputs, threads: int) -> Run:
    """XNNPACK's kernels under the interpreter that was TensorFlow Lite's; litert_torch wrote `model`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=threads)
    interpreter.allocate_tensors()
    for place, array in zip(interpreter.get_input_details(), inputs.values(), strict=True):
        interpreter.set_tensor(place["index"], array.astype(place["dtype"]))
    output = interpreter.get_output_details()[0]["index"]

    def run() -> Any:
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run
