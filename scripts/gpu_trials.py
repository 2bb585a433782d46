"""What `gpu_check.py` lets processes of its own do, which may break off or hang: kernels beside PyTorch.

A runner of the tuner's, whose pool of workers ends and replaces them (`tcomp/tuner/measure.py`). PyTorch and
what its compiler makes with Triton are configs beside those of a kernel, in the same process, so that a race
times them in turns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from tcomp.codegen.jit import build_kernel
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.relay.builder import make_node
from tcomp.relay.evaluate import evaluate_node
from tcomp.relay.graph import Value
from tcomp.relay.types import Array, TensorType, numpy_dtype
from tcomp.rounding import relative_error
from tcomp.target.cuda_state import gpu_state
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tuner.records import Check
from tcomp.tuner.runner import Failed, Measure, Measured, Prepared, Raced, Rounds
from tcomp.tuner.runners.local import LocalCandidate, LocalRunner
from tcomp.tuner.timing import TimedCandidate, TimingStation
from tcomp.tuner.trial_data import TrialData
from tcomp.tuner.worker import free_address_space

TORCH: Config = {"by": "PyTorch"}
TRITON: Config = {"by": "Triton"}
TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 4e-2}
"""Largest error over the largest magnitude of the result."""
_COLD_BYTES = 512 << 20
"""Filling so much takes the GPU longer than Python takes to launch."""
_REST_SECONDS = 250e-6


@dataclass(frozen=True)
class CheckRunner(LocalRunner):
    """This machine, beside PyTorch if it is there."""

    with_torch: bool = False

    def open(self, folder: Path, threads: int) -> TimingStation[TimedCandidate]:
        return _CheckStation(warm_torch() if self.with_torch else None)


class _CheckStation(TimingStation[TimedCandidate]):
    def __init__(self, torch: Any | None) -> None:
        self._torch = torch
        self._expected: tuple[str, Array] | None = None

    def data(self, kernel: Kernel, seed: int) -> TrialData:
        """Without a reference where PyTorch will compute it on the GPU: numpy would take minutes."""
        inputs = tuple(random_inputs(kernel, seed))
        expected = () if self._torch is not None else reference(kernel, inputs)
        return TrialData(inputs, expected, TOLERANCE[dtype_of(kernel)])

    def build(self, prepared: Prepared, config: Config) -> TimedCandidate:
        def expected() -> Array:
            return self._reference(prepared)

        if config in (TORCH, TRITON):
            return _TorchCandidate(self._torch, prepared, expected, compiled=config == TRITON)
        runner = build_kernel(prepared.kernel, prepared.target, config)
        runner.require_no_spills()
        return _KernelCandidate(prepared.data, runner, expected)

    def measure(self, candidate: TimedCandidate, request: Measure) -> Measured | Failed:
        measured = super().measure(candidate, request)
        return measured if isinstance(measured, Failed) else _with_conditions(measured, candidate)

    def race(self, candidates: Sequence[TimedCandidate], request: Rounds) -> Raced | Failed:
        raced = super().race(candidates, request)
        if isinstance(raced, Failed):
            return raced
        return Raced(tuple(map(_with_conditions, raced.results, candidates)))

    def conditions(self) -> Mapping[str, str]:
        return gpu_state()

    def _reference(self, prepared: Prepared) -> Array:
        """What the kernel must compute, kept for one kernel."""
        if prepared.data.expected:
            return prepared.data.expected[0]
        if self._expected is None or self._expected[0] != prepared.key:
            exact = in_torch(prepared.kernel, _tensors(self._torch, prepared, wide=True))
            with _rounding(self._torch, to_tf32=False):
                self._expected = prepared.key, exact().cpu().numpy()
        return self._expected[1]


def _with_conditions(measured: Measured, candidate: TimedCandidate) -> Measured:
    """Those of the candidate beside those of the device."""
    assert isinstance(candidate, _KernelCandidate | _TorchCandidate)
    return replace(measured, conditions={**measured.conditions, **candidate.conditions()})


class _KernelCandidate(LocalCandidate):
    def __init__(self, data: TrialData, runner: KernelRunner, expected: Callable[[], Array]) -> None:
        super().__init__(data, runner)
        self._expected = expected

    def check(self) -> Check:
        (output,) = self._runner.outputs(self._arguments)
        return Check(relative_error(output, self._expected()), self._data.tolerance)


class _TorchCandidate(TimedCandidate):
    """PyTorch's kernel, or that of its compiler with Triton alone. Its errors are told, whatever they are."""

    rest_seconds = _REST_SECONDS

    def __init__(self, torch: Any, prepared: Prepared, expected: Callable[[], Array], compiled: bool) -> None:
        self._torch, self._expected = torch, expected
        self._dtype = dtype_of(prepared.kernel)
        self._to_tf32 = self._dtype == "tf32"
        tensors = _tensors(torch, prepared, wide=False)
        self._run = in_torch(prepared.kernel, tensors)
        if compiled:
            with _rounding(torch, self._to_tf32):
                self._run = _triton(torch, prepared.kernel, tensors)
        self._result: Any = None

    def conditions(self) -> Mapping[str, str]:
        """`torch`: its version, the type of its tensors, and what it may round them to."""
        dtype = "float32" if self._to_tf32 else self._dtype
        rounds = " rounded to tf32" if self._to_tf32 else " without tf32" if dtype == "float32" else ""
        return {"torch": f"PyTorch {self._torch.__version__} in {dtype}{rounds}"}

    def run(self) -> None:
        with self._torch.no_grad(), _rounding(self._torch, self._to_tf32):
            self._result = self._run()
        self._torch.cuda.synchronize()

    def check(self) -> Check:
        return Check(relative_error(self._result.float().cpu().numpy(), self._expected()), inf)

    def time(self, number: int, repeat: int) -> list[float]:
        self.run()
        return [sum(self.clock(number)) / number for _ in range(repeat)]

    def clock(self, repeat: int) -> list[float]:
        torch, seconds = self._torch, list[float]()
        cold = torch.empty(_COLD_BYTES, dtype=torch.uint8, device="cuda")
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.no_grad(), _rounding(torch, self._to_tf32):
            for _ in range(repeat):
                cold.zero_()
                first.record()
                self._run()
                last.record()
                last.synchronize()
                seconds.append(first.elapsed_time(last) * 1e-3)
        return seconds


def warm_torch() -> Any:
    """PyTorch, its GPU's libraries loaded, which takes seconds that no kernel's time limit should count."""
    free_address_space()
    import torch

    torch.backends.cudnn.benchmark = True
    square = torch.ones(64, 64, device="cuda")
    image = square.reshape(1, 64, 8, 8)
    torch.nn.functional.conv2d(image, square.reshape(64, 64, 1, 1))
    torch.matmul(square, square)
    torch.cuda.synchronize()
    return torch


@contextmanager
def _rounding(torch: Any, to_tf32: bool) -> Generator[None]:
    """PyTorch asks at each product of float32 whether it may round factors to tf32."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [one.allow_tf32 for one in settings]
    try:
        for one in settings:
            one.allow_tf32 = to_tf32
        yield
    finally:
        for one, allowed in zip(settings, before, strict=True):
            one.allow_tf32 = allowed


def in_torch(kernel: Kernel, tensors: Sequence[Any]) -> Callable[[], Any]:
    """One run of the kernel's operator in PyTorch."""
    from torch_graph import OPERATORS

    (node,) = kernel.body.nodes
    return lambda: OPERATORS[node.op](tensors, node.attrs)


def _triton(torch: Any, kernel: Kernel, tensors: Sequence[Any]) -> Callable[[], Any]:
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # This process has one core, the search takes all.
    only = dict.fromkeys(("max_autotune_gemm_backends", "max_autotune_conv_backends"), "TRITON")

    def run(*given: Any) -> Any:
        return in_torch(kernel, given)()

    compiled = torch.compile(run, options={"max_autotune": True, **only})
    compiled(*tensors)
    return lambda: compiled(*tensors)


def _tensors(torch: Any, prepared: Prepared, wide: bool) -> list[Any]:
    """The inputs on the GPU, in float32 if `wide`."""
    if wide:
        return [torch.from_numpy(array.astype(np.float32)).cuda() for array in prepared.data.inputs]
    return [_tensor(torch, array) for array in prepared.data.inputs]


def _tensor(torch: Any, array: Array) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def dtype_of(kernel: Kernel) -> str:
    """The type of what the kernel's one operator multiplies; operands of `tf32` are stored as float32."""
    (node,) = kernel.body.nodes
    return str(node.attrs.get("multiply_as") or node.inputs[0].dtype)


def random_inputs(kernel: Kernel, seed: int = 0) -> list[Array]:
    """Normal numbers, those of weights so small that sums of products are of the size of the activations."""
    generator = np.random.default_rng(seed)
    arrays: list[Array] = []
    for index, value in enumerate(kernel.body.inputs):
        shape = value.type.static_shape
        array = generator.standard_normal(shape, np.float32)
        if index in kernel.constant_inputs:
            array /= np.sqrt(array.size / shape[0 if len(shape) > 2 else -1])
        arrays.append(array.astype(numpy_dtype(value.dtype)))
    return arrays


def reference(kernel: Kernel, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """What the kernel's operator computes in float32, by numpy."""
    (node,) = kernel.body.nodes
    values = [Value(TensorType(v.type.shape, "float32"), v.name) for v in kernel.body.inputs]
    attrs = {name: value for name, value in node.attrs.items() if name != "multiply_as"}
    exact = make_node(node.op, values, attrs)
    return tuple(evaluate_node(exact, [array.astype(np.float32) for array in inputs]))
