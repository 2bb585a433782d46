"""What runs on the machines that TVM's RPC tracker lends: libraries of one kernel, for CPUs and for GPUs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tcomp.codegen.c_abi import build, object_of
from tcomp.codegen.cuda.jit import build_cuda
from tcomp.codegen.cuda.trial_library import TrialLibraries
from tcomp.codegen.jit import ENTRY, kernel_arguments, to_tensor
from tcomp.codegen.link import link_plugin
from tcomp.codegen.toolchain import find_toolchain
from tcomp.errors import TargetError
from tcomp.relay.types import Array, TensorType
from tcomp.target.target import Target
from tcomp.tensor.amx import uses_tiles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config
from tcomp.tensor.selection import schedule
from tcomp.tensor.template import Scheduled
from tcomp.tuner.records import Check
from tcomp.tuner.runner import Prepared
from tcomp.tuner.timing import TimedCandidate
from tcomp.tuner.trial_data import TrialData, compare
from tcomp.tvm_api import tvm

_NAME_BYTES = 256


class RpcCandidate(TimedCandidate):
    """A library with one kernel, and what it has on a machine while it is there."""

    def __init__(self, library: bytes, data: TrialData) -> None:
        self.data = data
        self.remote: Any = None
        self._library = library

    def load(self, session: Any, name: str) -> None:
        """Send the library, under `name`, and its inputs."""
        session.upload(bytearray(self._library), name)
        self.remote = session.load_module(name)
        self.prepare(session.cpu(0))

    @abstractmethod
    def prepare(self, device: Any) -> None:
        """Make arguments; `device` is the machine's CPU."""

    def unload(self) -> None:
        """Forget what is on the machine."""
        self.remote = None

    def conditions(self) -> Mapping[str, str]:
        """What the compiler said of the code, for the record."""
        return {}

    def clock(self, repeat: int) -> list[float]:
        """Seconds measured there, where the clock of this machine would count the network."""
        return self.time(1, repeat)


class CpuCandidate(RpcCandidate):
    """A kernel that TVM's runtime calls and times."""

    def __init__(self, kernel: Kernel, scheduled: Scheduled, data: TrialData, library: bytes) -> None:
        super().__init__(library, data)
        self._kernel = kernel
        self._scheduled = scheduled
        self._device: Any = None
        self._arguments: list[Any] = []

    @staticmethod
    def build(prepared: Prepared, config: Config, folder: Path) -> CpuCandidate:
        scheduled = schedule(prepared.kernel, prepared.target, config)
        if uses_tiles(scheduled.function):
            raise TargetError(
                "the kernel uses tiles, for which TVM's server does not ask its system; give the target as "
                '{"tag": ..., "mattr": ["-amx-tile"]}, or tune on the machine itself'
            )
        module = build({"kernel": scheduled.function}, prepared.target, packed=ENTRY, tensors="dltensors")
        compiled, library = folder / "kernel.o", folder / "kernel.so"
        compiled.write_bytes(object_of(module, prepared.target))
        link_plugin(find_toolchain(prepared.target), [compiled], library, folder)
        return CpuCandidate(prepared.kernel, scheduled, prepared.data, library.read_bytes())

    def prepare(self, device: Any) -> None:
        self._device = device
        self._arguments = kernel_arguments(self._kernel, self._scheduled, self.data.inputs, device)

    def unload(self) -> None:
        super().unload()
        self._device, self._arguments = None, []

    def run(self) -> None:
        self.remote[ENTRY](*self._arguments)

    def check(self) -> Check:
        first_output = len(self._arguments) - len(self.data.expected)
        return compare(self.data, [t.numpy() for t in self._arguments[first_output:]])

    def time(self, number: int, repeat: int) -> list[float]:
        evaluator = self.remote.time_evaluator(ENTRY, self._device, number=number, repeat=repeat)
        return [float(seconds) for seconds in evaluator(*self._arguments).results]


class GpuCandidate(RpcCandidate):
    """A kernel that starts itself by the driver of the machine's GPU, and times itself by events there."""

    def __init__(
        self,
        library: bytes,
        data: TrialData,
        inputs: Sequence[Array],
        taken: Mapping[str, str],
        rest_seconds: float,
    ) -> None:
        super().__init__(library, data)
        self._inputs = inputs
        self._taken = taken
        self._device: Any = None
        self.rest_seconds = rest_seconds

    @staticmethod
    def build(prepared: Prepared, config: Config, folder: Path) -> GpuCandidate:
        """Raises BuildError for a kernel that spills registers, too."""
        kernel, target = prepared.kernel, prepared.target
        assert target.gpu is not None
        scheduled = schedule(kernel, target, config)
        runner = build_cuda(kernel, scheduled, target)
        runner.require_no_spills()
        inputs = runner.packed(prepared.data.inputs)
        read = [TensorType(a.shape, str(a.dtype)) for a in inputs]
        libraries = TrialLibraries(find_toolchain(target), folder, target.gpu)
        library = libraries.of(runner.code, runner.cubin, [*read, *scheduled.scratch, *runner.output_types])
        return GpuCandidate(library, prepared.data, inputs, runner.taken, runner.rest_seconds)

    def prepare(self, device: Any) -> None:
        self._device = device
        self.remote["prepare"](*(to_tensor(array, device) for array in self._inputs))

    def unload(self) -> None:
        super().unload()
        self._device = None

    def conditions(self) -> Mapping[str, str]:
        return self._taken

    def run(self) -> None:
        self.remote["run"]()

    def check(self) -> Check:
        outputs = [tvm.runtime.empty(a.shape, a.dtype.name, self._device) for a in self.data.expected]
        self.remote["fetch"](*outputs)
        return compare(self.data, [tensor.numpy() for tensor in outputs])

    def time(self, number: int, repeat: int) -> list[float]:
        seconds = tvm.runtime.empty((repeat,), "float64", self._device)
        self.remote["time"](number, seconds)
        return [float(s) for s in seconds.numpy()]


def require_remote_gpu(session: Any, target: Target, folder: Path) -> str:
    """What the first GPU of the machine behind `session` calls itself.

    Raises TargetError when it cannot run code for `target`, or there is none.
    """
    assert target.gpu is not None
    name, arch = "describe.so", target.gpu.arch
    session.upload(
        bytearray(TrialLibraries(find_toolchain(target), folder, target.gpu).without_kernel()), name
    )
    characters = tvm.runtime.empty((_NAME_BYTES,), "uint8", session.cpu(0))
    try:
        capability = int(session.load_module(name)["describe"](characters))
    except RuntimeError as error:
        raise TargetError(f"the server has no GPU to run `{target.name}` on: {last_line(error)}") from error
    found = characters.numpy().tobytes().partition(b"\0")[0].decode()
    if not target.gpu.runs_on(capability):
        raise TargetError(
            f"code for target `{target.name}` is for {arch}, and the server's {found} has compute capability "
            f"{capability / 10}; give its target with --target"
        )
    return found


def last_line(error: RuntimeError) -> str:
    """What an error of a server says in the end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
