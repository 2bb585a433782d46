"""Measuring on the GPU of another machine: here of this process or another, with the emulated GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cuda_kernels import kernel
from mma_kernels import matmul
from rpc_servers import Servers, needs_servers, runner_of
from test_matmul_wgmma import HOPPER, SMALL, TEMPLATE

from tcomp.errors import BuildError, TargetError
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import ALGORITHM, Config
from tcomp.tuner.measure import MeasureOptions, WorkerPool
from tcomp.tuner.rpc_candidates import GpuCandidate, require_remote_gpu
from tcomp.tuner.runner import Prepared
from tcomp.tuner.task import Task
from tcomp.tuner.trial_data import trial_data
from tcomp.tvm_api import tvm

pytestmark = pytest.mark.emulated


class Here:
    """A session of a server that is this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def upload(self, data: bytearray, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)  # It may be loaded.
        (self._folder / name).write_bytes(data)

    def load_module(self, name: str) -> Any:
        return tvm.runtime.load_module(str(self._folder / name))

    def cpu(self, number: int) -> Any:
        return tvm.cpu(number)


@pytest.fixture
def session(tmp_path: Path) -> Here:
    (tmp_path / "server").mkdir()
    return Here(tmp_path / "server")


def candidate(some: Kernel, target: Target, config: Config, folder: Path) -> GpuCandidate:
    prepared = Prepared(some.key, some, target, trial_data(some, 0))
    return GpuCandidate.build(prepared, config, folder)


def test_a_library_runs_checks_and_times_its_kernel(gpu: Target, session: Here, tmp_path: Path) -> None:
    """Two launches, with parts of the sums in memory between them, and a packed operand."""
    some = kernel("matmul", (24, 96), (96, 40))
    task = Task.of(some, gpu)
    config = {**task.space.default, "split": 2, "streamed": 0} if not task.algorithms else {
        ALGORITHM: "matmul_cuda", "tile_m": 32, "tile_n": 32, "tile_k": 8, "thread_m": 4, "thread_n": 4,
        "stages": 2, "split": 2, "vector": 4,
    }  # fmt: skip
    one = candidate(some, gpu, config, tmp_path)
    assert one.conditions() == {"registers": "32, 32", "shared memory": one.conditions()["shared memory"]}
    for _ in range(2):  # On another machine each time.
        one.load(session, "candidate.so")
        one.run()
        assert one.check().max_error <= one.check().tolerance
        assert len(one.time(2, 3)) == 3
        assert all(seconds > 0 for seconds in one.clock(2))
        one.unload()


def test_maps_of_tensors_are_made_there(
    gpu: Target, session: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_CAPABILITY", "90")
    some = matmul((40, 64), (64, 32), constant=True)
    one = candidate(some, HOPPER, {ALGORITHM: TEMPLATE, **SMALL}, tmp_path)
    one.load(session, "candidate.so")
    one.run()
    assert one.check().max_error <= one.check().tolerance


def test_what_the_driver_refuses_is_told(
    gpu: Target, session: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = kernel("relu", (8, 32))
    one = candidate(some, gpu, Task.of(some, gpu).space.default, tmp_path)
    monkeypatch.setenv("EMULATED_MEMORY", "4096")
    with pytest.raises(RuntimeError, match=r"GPU: memory .*: out of memory \(CUDA error 2\)"):
        one.load(session, "candidate.so")
    monkeypatch.setenv("EMULATED_SPILLS", "8")
    with pytest.raises(BuildError, match="spills 16 bytes"):
        candidate(some, gpu, Task.of(some, gpu).space.default, tmp_path)


def test_the_gpu_there_must_be_that_of_the_target(
    gpu: Target, session: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert require_remote_gpu(session, gpu, tmp_path) == "Emulated GPU"
    with pytest.raises(TargetError, match=r"is for sm_90a, and the server's Emulated GPU has .* 8\.0"):
        require_remote_gpu(session, HOPPER, tmp_path)
    monkeypatch.setenv("EMULATED_DEVICES", "0")
    with pytest.raises(TargetError, match=r"no GPU to run `cuda:sm_80` on: .*no CUDA-capable device"):
        require_remote_gpu(session, gpu, tmp_path)


@needs_servers
@pytest.mark.slow
def test_trials_on_a_server(gpu: Target, servers: Servers) -> None:
    port = servers.add("gpu")
    task = Task.of(kernel("softmax", (16, 64), axis=1), gpu)
    runner = replace(runner_of(servers, "gpu"), move_seconds=30.0)
    configs = [{**task.space.default, "lanes": lanes} for lanes in (8, 32)]
    with WorkerPool(MeasureOptions(runner=runner, trial_seconds=60)) as pool:
        assert pool.connect([gpu]).name == "gpu"
        outcomes = list(pool.measure(task, configs))
        raced = pool.race(task, configs)
        with pytest.raises(TargetError, match="is for sm_86, and the server's Emulated GPU has"):
            pool.connect([parse_target("cuda:sm_86")])
    assert [(o.status, o.reason) for o in (*outcomes, *raced)] == [("ok", "")] * 4
    assert {(o.conditions["server"], o.conditions["registers"]) for o in outcomes} == {
        (f"127.0.0.1:{port}", "32")
    }
