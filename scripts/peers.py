"""One runtime holding one model in a process of its own, timed on request: `Peer` here, the worker below.

    python scripts/peers.py onnxruntime models/resnet50.onnx inputs.npz --threads 1

The worker answers its standard input line by line, in JSON: first {"ready": ready} or {"absent": reason},
then for each line `seconds` {"seconds": the median of the runs it could do in that time, after one that is
not timed}. A process each keeps thread pools apart and lets every runtime live in the interpreter that has
it. Runtimes that read no ONNX file build the model from the same architecture (`export_models.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # an interpreter that has the peers need not have tcomp installed

from converted_models import litert_run, ncnn_run  # noqa: E402
from tcomp.runtime import load  # noqa: E402
from tcomp.runtime.peers import PEERS  # noqa: E402

Run = Callable[[], object]


class Absent(Exception):
    """The runtime cannot run this model here; the text says why."""


def tcomp(model: Path, inputs: Mapping[str, Any], threads: int) -> Run:
    """A library that `tcomp compile` wrote."""
    loaded = load(model, threads=threads)
    return lambda: loaded(**inputs)


def torch_module(model: Path, threads: int) -> Any:
    """The PyTorch module that `model` was exported from."""
    import torch

    from export_models import TOKEN_MODELS, image_model

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name = model.stem.removesuffix("_dynamo")
    if name == "minilm" or name.startswith(("light_", "ocr_", "mtcnn_", "opennsfw", "rapid", "magika")):
        raise Absent(f"{name} has no PyTorch source")
    return (TOKEN_MODELS[name](None) if name in TOKEN_MODELS else image_model(name)).eval()


def torch_compile(model: Path, inputs: Mapping[str, Any], threads: int) -> Run:
    """Inductor with frozen weights."""
    module = torch_module(model, threads)
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    compiled = torch.compile(module)
    tensors = [torch.from_numpy(a) for a in inputs.values()]

    def run() -> object:
        with torch.no_grad():
            return compiled(*tensors)

    return run


def write_ncnn(model: Path, inputs: Mapping[str, Any], threads: int, folder: Path) -> None:
    """Fill the new `folder` with a model that ncnn reads, in float32, through pnnx."""
    import pnnx

    module = torch_module(model, threads)
    import torch

    tensors = tuple(torch.from_numpy(a) for a in inputs.values())
    folder.mkdir()
    os.chdir(folder)
    pnnx.export(module, "model.pt", tensors, fp16=False)


def ncnn(model: Path, inputs: Mapping[str, Any], threads: int) -> Run:
    """Through pnnx."""
    folder = Path(tempfile.mkdtemp()) / "ncnn"
    write_ncnn(model, inputs, threads, folder)
    return ncnn_run(folder, inputs, threads)


def executorch(model: Path, inputs: Mapping[str, Any], threads: int) -> Run:
    """XNNPACK kernels."""
    module = torch_module(model, threads)
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    tensors = tuple(torch.from_numpy(a) for a in inputs.values())
    exported = torch.export.export(module, tensors)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    # Its pool has a thread for every core it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    buffer = program.buffer
    loaded = Runtime.get().load_program(buffer)
    method = loaded.load_method("forward")
    kept = (buffer, loaded)  # the method reads them, but does not keep them alive

    def run(alive: object = kept) -> object:
        return method.execute(tensors)

    return run


def write_litert(model: Path, inputs: Mapping[str, Any], threads: int, path: Path) -> None:
    """Write `path`, a model that LiteRT reads."""
    module = torch_module(model, threads)
    import litert_torch
    import torch

    tensors = tuple(torch.from_numpy(a) for a in inputs.values())
    litert_torch.convert(module, tensors).export(str(path))


def litert(model: Path, inputs: Mapping[str, Any], threads: int) -> Run:
    """Through litert_torch."""
    path = Path(tempfile.mkdtemp()) / "model.tflite"
    write_litert(model, inputs, threads, path)
    return litert_run(path, inputs, threads)


RUNTIMES: dict[str, Callable[[Path, Mapping[str, Any], int], Run]] = {
    **PEERS,
    "torch_compile": torch_compile,
    "ncnn": ncnn,
    "executorch": executorch,
    "litert": litert,
    "tcomp": tcomp,
}
DISTRIBUTIONS = {"openvino_bf16": "openvino", "torch_compile": "torch", "litert": "ai-edge-litert"}
"""Where the package on PyPI has another name than the runtime here."""


class Peer:
    """A worker process. `absent` says why there is none, and is empty otherwise."""

    def __init__(self, runtime: str, model: Path, inputs: Path, threads: int, python: str) -> None:
        command = [python, __file__, runtime, str(model), str(inputs), "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        answer = self._answer()
        self.absent: str = answer.get("absent", "")
        self.version: str = answer.get("ready", "")

    def seconds(self, budget: float) -> float:
        """The median of the runs that fit into `budget` seconds, at least one, after a warm-up."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{budget}\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the worker."""
        with self._process:  # closes its streams, then waits for it
            pass

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"absent": f"worker ended, status {self._process.wait()}"}


def serve(run: Run, answers: Any) -> None:
    for line in sys.stdin:
        run()
        seconds, end = [], time.perf_counter() + float(line)
        while not seconds or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": statistics.median(seconds)}), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runtime", choices=list(RUNTIMES))
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    # Runtimes print what they like; only the answers go out.
    answers = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with np.load(arguments.inputs) as file:
        inputs = dict(file)
    try:
        model = arguments.model.resolve()
        run = RUNTIMES[arguments.runtime](model, inputs, arguments.threads)
        run()
        ready = version(DISTRIBUTIONS.get(arguments.runtime, arguments.runtime))
    except Exception as error:  # whatever a peer trips over is its reason to be absent from the table
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(json.dumps({"absent": reason}), file=answers, flush=True)
        return
    print(json.dumps({"ready": ready}), file=answers, flush=True)
    serve(run, answers)


if __name__ == "__main__":
    main()
