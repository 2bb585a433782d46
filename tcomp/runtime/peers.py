"""Other runtimes that run the same ONNX file, for timing side by side. Each is installed by the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tcomp.errors import UsageError

Runner = Callable[[], object]
MakeRunner = Callable[[Path, Mapping[str, Any], int], Runner]


def onnxruntime_runner(path: Path, inputs: Mapping[str, Any], threads: int) -> Runner:
    """ONNX Runtime on the CPU with all graph optimisations.

    Its threads stop spinning when a run ends: they would take the CPUs from whatever runs in turns with it.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("ONNX Runtime is not installed: pip install 'tcomp[verify]'") from None
    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its kinds have no common base
        raise UsageError(f"ONNX Runtime cannot run {path}: {str(error)[:300]}") from None
    feeds = dict(inputs)
    return lambda: session.run(None, feeds)


def openvino_runner(path: Path, inputs: Mapping[str, Any], threads: int, precision: str = "f32") -> Runner:
    """OpenVINO on the CPU, one stream; `precision` is its inference precision hint."""
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("OpenVINO is not installed: pip install openvino") from None
    runtime: Any = openvino
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    core = runtime.Core()
    model = core.read_model(str(path))
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    feeds = dict(inputs)
    return lambda: request.infer(feeds, share_inputs=True)


def openvino_bf16_runner(path: Path, inputs: Mapping[str, Any], threads: int) -> Runner:
    """OpenVINO in bfloat16, its default on CPUs with instructions for it."""
    return openvino_runner(path, inputs, threads, "bf16")


PEERS: dict[str, MakeRunner] = {
    "onnxruntime": onnxruntime_runner,
    "openvino": openvino_runner,
    "openvino_bf16": openvino_bf16_runner,
}
"""Peers by the name that `tcomp bench --against` takes."""
