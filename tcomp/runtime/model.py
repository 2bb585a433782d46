"""A compiled model as a Python callable on arrays."""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Union, cast

import numpy as np
import numpy.typing as npt

from tcomp.errors import ArtifactError, InputError, UsageError
from tcomp.runtime.gpu_array import GpuArray, gpu_array, wait_for
from tcomp.runtime.library import CBuffer, COptions, TensorInfo, numpy_dtype, open_library, tensor_info

Array = npt.NDArray[Any]
AnyArray = Union[Array, GpuArray]


@dataclass(frozen=True)
class StepTime:
    """Time of one step of a model, in seconds per run."""

    label: str
    seconds: float


class Model:
    """A loaded artifact with one context: memory and threads of its own.

    Call it with arrays in the order of `inputs`, or by name; numpy arrays and objects with DLPack are read
    in place, and where the model runs on a GPU, those in its memory (PyTorch's, CuPy's) too. Threads may
    share a model, and then run one after the other; `new_context` gives a second one that runs at the same
    time, with the weights of the first.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        path: Path,
        threads: int = 0,
        weights: Path | None = None,
        variant: str | None = None,
        share_with: ctypes.c_void_p | None = None,
    ) -> None:
        _check_at_least("threads", threads, 0)
        self._library = library
        self._path = path
        self._weights = weights
        self.name: str = library.tcomp_model_name().decode()
        self.target: str = library.tcomp_target().decode()
        self._runs_on_gpu = self.target.rpartition(" ")[2].startswith("sm_")
        self.arena_bytes: int = library.tcomp_arena_bytes()
        self.weights_bytes: int = library.tcomp_weights_bytes()
        self.inputs = tuple(
            tensor_info(library.tcomp_input(i).contents) for i in range(library.tcomp_input_count())
        )
        self.outputs = tuple(
            tensor_info(library.tcomp_output(i).contents) for i in range(library.tcomp_output_count())
        )
        self._context = _create(library, path, threads, weights, variant, share_with)
        self._finalizer = weakref.finalize(self, library.tcomp_destroy, self._context)
        self.variant: str = library.tcomp_variant(self._context).decode()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what another process unpickles, is the artifact loaded again."""
        return load, (self._path, self.threads, self._weights, self.variant or None)

    def __call__(self, *arrays: Any, **named: Any) -> list[Array]:
        """The outputs, as new arrays.

        Raises InputError when an array differs from its input in shape, dtype or layout.
        """
        inputs = self._arguments(arrays, named)
        outputs = self._empty_outputs()
        self._run(inputs, outputs)
        return outputs

    def run_into(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Run, and write into existing arrays: numpy's, or in the memory of the GPU that the model runs on.

        Raises InputError when an array does not fit, or an output cannot be written.
        """
        self._run(self._arguments(inputs, {}), self._writable(outputs))

    def enqueue(self, inputs: Sequence[Any], outputs: Sequence[Any], stream: int) -> None:
        """Put a run into a CUDA stream, such as `torch.cuda.current_stream().cuda_stream`, and do not wait.

        Arrays are in the memory of the GPU that the model runs on, or numpy's in page-locked memory. They
        must be there until the run has ended; what writes or reads them comes before or after it in `stream`.
        Raises InputError when an array does not fit, or an output cannot be written.
        """
        read, written = self._arguments(inputs, {}), self._writable(outputs)
        call = self._alive(), _buffers(read), len(read), _buffers(written), len(written)
        self._check_status(self._library.tcomp_enqueue(*call, stream))

    def time(self, *arrays: Any, number: int = 1, repeat: int = 5, **named: Any) -> list[float]:
        """Seconds of one run, averaged over `number` runs, `repeat` times; the first run is not counted.

        Raises UsageError for numbers below 1.
        """
        _check_at_least("number", number, 1)
        _check_at_least("repeat", repeat, 1)
        inputs, outputs = self._arguments(arrays, named), self._empty_outputs()
        self._run(inputs, outputs)
        call = self._call_of(inputs, outputs)
        times: list[float] = []
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(number):
                self._check_status(self._library.tcomp_run(*call))
            times.append((time.perf_counter() - start) / number)
        return times

    def profile(self, *arrays: Any, number: int = 1, **named: Any) -> list[StepTime]:
        """The time of each step, averaged over `number` runs, after one run that is not counted.

        Raises UsageError for a number below 1.
        """
        _check_at_least("number", number, 1)
        inputs, outputs = self._arguments(arrays, named), self._empty_outputs()
        self._run(inputs, outputs)
        call = self._call_of(inputs, outputs)
        count = self._library.tcomp_step_count()
        nanoseconds = (ctypes.c_uint64 * max(1, count))()
        for _ in range(number):
            self._check_status(self._library.tcomp_profile(*call, nanoseconds, count))
        labels = [self._library.tcomp_step_label(i).decode() for i in range(count)]
        return [
            StepTime(label, total / number * 1e-9) for label, total in zip(labels, nanoseconds, strict=False)
        ]

    @property
    def threads(self) -> int:
        """How many threads a run uses."""
        return self._library.tcomp_threads(self._alive())

    @threads.setter
    def threads(self, threads: int) -> None:
        _check_at_least("threads", threads, 0)
        self._check_status(self._library.tcomp_set_threads(self._alive(), threads))

    def new_context(self, threads: int = 0) -> Model:
        """Another model of the same library, with tensors and threads of its own. 0 threads: all CPUs.

        Both have the same weights in memory, and on a GPU the same code; they run on the same device, and may
        be closed in any order. Raises UsageError when this model is closed, and ArtifactError when memory is
        short or another device is current.
        """
        return Model(self._library, self._path, threads, self._weights, self.variant, self._alive())

    def close(self) -> None:
        """Free the memory and end the threads; the model cannot be called any more."""
        self._finalizer()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{t.name}: {t}" for t in self.inputs)
        outputs = ", ".join(f"{t.name}: {t}" for t in self.outputs)
        return f"Model({self.name}, {inputs} -> {outputs}, {self.target})"

    def _alive(self) -> ctypes.c_void_p:
        if not self._finalizer.alive:
            raise UsageError(f"model `{self.name}` is closed")
        return self._context

    def _empty_outputs(self) -> list[Array]:
        return [np.empty(info.shape, numpy_dtype(info.dtype)) for info in self.outputs]

    def _on_gpu(self, where: str, value: Any) -> GpuArray | None:
        """`value` if it is in a GPU's memory, which the model must be able to read."""
        array = gpu_array(where, value)
        if array is not None and not self._runs_on_gpu:
            raise InputError(f"{where} is in a GPU's memory, and the model runs on the CPU; copy it there")
        return array

    def _arguments(self, arrays: Sequence[Any], named: Mapping[str, Any]) -> list[AnyArray]:
        """Checked arrays in the order of `inputs`."""
        names = [info.name for info in self.inputs]
        unknown = [name for name in named if name not in names[len(arrays) :]]
        if unknown:
            problem = "given twice" if unknown[0] in names else f"unknown; inputs are {', '.join(names)}"
            raise InputError(f"model `{self.name}`: input `{unknown[0]}` is {problem}")
        missing = [name for name in names[len(arrays) :] if name not in named]
        if missing or len(arrays) > len(names):
            wanted = ", ".join(f"{info.name}: {info}" for info in self.inputs)
            given = len(arrays) + len(named)
            raise InputError(f"model `{self.name}` takes {len(names)} inputs ({wanted}), {given} given")
        values = [*arrays, *(named[name] for name in names[len(arrays) :])]
        checked: list[AnyArray] = []
        for index, (info, value) in enumerate(zip(self.inputs, values, strict=True)):
            where = f"input {index} `{info.name}`"
            array = self._on_gpu(where, value) or _as_array(where, info, value)
            _check(where, info, array)
            checked.append(array)
        return checked

    def _writable(self, outputs: Sequence[Any]) -> list[AnyArray]:
        """Checked arrays for the outputs."""
        if len(outputs) != len(self.outputs):
            raise InputError(
                f"model `{self.name}` has {len(self.outputs)} outputs; {len(outputs)} arrays given"
            )
        written: list[AnyArray] = []
        for index, (info, value) in enumerate(zip(self.outputs, outputs, strict=True)):
            where = f"output {index} `{info.name}`"
            on_gpu = self._on_gpu(where, value)
            if on_gpu is None and not isinstance(value, np.ndarray):
                raise InputError(
                    f"{where} is a {type(value).__name__}; it must be a numpy array of {info} to write into"
                )
            array = on_gpu or cast("Array", value)
            _check(where, info, array)
            if not (array.writeable if isinstance(array, GpuArray) else array.flags.writeable):
                raise InputError(f"{where} is a read-only array; give a writable one")
            written.append(array)
        return written

    def _call_of(self, inputs: Sequence[AnyArray], outputs: Sequence[AnyArray]) -> tuple[Any, ...]:
        """Arguments of `tcomp_run`; valid while the arrays live."""
        on_gpu = [array for array in (*inputs, *outputs) if isinstance(array, GpuArray)]
        if on_gpu:
            wait_for(on_gpu)
        return self._alive(), _buffers(inputs), len(inputs), _buffers(outputs), len(outputs)

    def _run(self, inputs: Sequence[AnyArray], outputs: Sequence[AnyArray]) -> None:
        self._check_status(self._library.tcomp_run(*self._call_of(inputs, outputs)))

    def _check_status(self, status: int) -> None:
        if status != 0:
            raise ArtifactError(f"model `{self.name}`: {self._library.tcomp_error(self._context).decode()}")


def load(
    path: str | Path, threads: int = 0, weights: str | Path | None = None, variant: str | None = None
) -> Model:
    """Load a compiled model. `threads` is how many it runs on, 0 meaning all CPUs of this process.

    `weights` is the file with its weights, where they are separate: by default beside the library. Of a
    library for several kinds of CPU, `variant` names the code to run: by default the best for this one.
    Raises ArtifactError for a file that is damaged, for another machine or of another ABI version, and
    UsageError for weights of a library that embeds its own.
    """
    library_path = Path(path)
    library = open_library(library_path)
    separate = None
    if not library.tcomp_weights_embedded():
        separate = Path(weights or library_path.with_suffix(".weights"))
    elif weights is not None:
        raise UsageError(f"{path} embeds its weights: load it without weights={str(weights)!r}")
    return Model(library, library_path, threads, separate, variant)


_MOST = 2**31 - 1
"""What the C ABI's numbers hold."""


def _check_at_least(name: str, value: Any, least: int) -> None:
    """Raise UsageError where `value` is no whole number from `least` on."""
    if not isinstance(value, Integral) or not least <= int(value) <= _MOST:
        raise UsageError(f"{name}={value!r} is no whole number from {least} to {_MOST}")


def _create(
    library: ctypes.CDLL,
    path: Path,
    threads: int,
    weights: Path | None,
    variant: str | None,
    share_with: ctypes.c_void_p | None,
) -> ctypes.c_void_p:
    """A new context: with the weights of `share_with`, where that is given, else with those in `weights`."""
    options = COptions(struct_bytes=ctypes.sizeof(COptions), threads=threads, share_with=share_with)
    if weights is not None and share_with is None:
        options.weights_path = str(weights).encode()
    if variant is not None:
        options.variant = variant.encode()
    context = ctypes.c_void_p()
    if library.tcomp_create(ctypes.byref(options), ctypes.byref(context)) != 0:
        raise ArtifactError(f"{path}: {library.tcomp_error(None).decode()}")
    return context


def _buffers(arrays: Sequence[AnyArray]) -> Any:
    places = (a.pointer if isinstance(a, GpuArray) else a.ctypes.data for a in arrays)
    buffers = (CBuffer(place, a.nbytes) for place, a in zip(places, arrays, strict=True))
    return (CBuffer * max(1, len(arrays)))(*buffers)


def _as_array(where: str, info: TensorInfo, value: Any) -> Array:
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(cast("Array", value))
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"{where} is a {type(value).__name__}; it must be an array of {info}: use numpy.asarray"
        )
    try:
        return cast("Array", np.from_dlpack(value))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{where} cannot be read through DLPack: {error}; give a numpy array on the CPU"
        ) from None


def _check(where: str, info: TensorInfo, array: AnyArray) -> None:
    found = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    if array.shape != info.shape:
        raise InputError(
            f"{where} has shape {found}; it must be {info}: reshape it, or compile for its shape"
        )
    if array.dtype != numpy_dtype(info.dtype):
        raise InputError(f"{where} is {found}; it must be {info}: convert it with .astype")
    if isinstance(array, GpuArray):
        if not array.contiguous:
            raise InputError(f"{where} is not contiguous; copy it into one that is")
    elif not array.flags.c_contiguous:
        raise InputError(f"{where} is not contiguous (strides {array.strides}); use numpy.ascontiguousarray")
    elif not array.flags.aligned:
        raise InputError(
            f"{where} is at an address that is no multiple of {array.itemsize}; copy it with .copy()"
        )
