"""One library for several ARM cores under qemu: which code runs on which of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_emulated import network, run, tools

from tcomp.api import compile
from tcomp.relay.evaluate import evaluate
from tcomp.target.parse import parse_target

CORES = "arm64-linux+cortex-a55,cortex-a76,cortex-x2"
A55, A76, UNKNOWN = 0x411FD050, 0x410FD0B0, 0x410FDFF0
"""MIDR_EL1 of the cores, and of one that nobody has heard of."""
PROGRAM = Path(__file__).with_name("variant.c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a library for three cores is, `network.so`, and the program that says what it runs, `variant`."""
    folder = tmp_path_factory.mktemp("variants")
    toolchain, _ = tools(parse_target("arm64-linux"))
    compile(network(), folder / "network.so", CORES)
    flags = ["-std=gnu11", f"-I{folder}", f"-Wl,-rpath,{folder}", "-o", folder / "variant"]
    subprocess.run([*toolchain.command, PROGRAM, folder / "network.so", *flags], check=True)
    return folder


def chosen(folder: Path, cpu: str, *arguments: str, root: Path | None = None, on: Sequence[int] = ()) -> str:
    """What the program says on an emulated `cpu`; `root` has files that it sees in place of this machine's,
    `on` are the CPUs that it may use."""
    _, (emulator, _, libraries) = tools(parse_target("arm64-linux"))
    command = [emulator, "-cpu", cpu, "-L", str(root or libraries), folder / "variant", *arguments]
    limit = (lambda: os.sched_setaffinity(0, on)) if on else None
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False).stdout


@pytest.mark.parametrize(
    ("cpu", "variant"),
    [
        ("cortex-a76", "cortex-a76"),
        ("neoverse-n1", "cortex-a76"),
        ("max", "cortex-x2"),
    ],
)
def test_takes_the_code_for_the_cpu(folder: Path, cpu: str, variant: str) -> None:
    assert chosen(folder, cpu) == variant


def test_a_cpu_below_all_is_refused(folder: Path) -> None:
    said = chosen(folder, "cortex-a53")
    assert said.startswith("2: this CPU has no ")
    assert said.endswith(" for cortex-x2, and no dotprod for cortex-a76, and no dotprod for cortex-a55")


def test_a_variant_may_be_named(folder: Path) -> None:
    assert chosen(folder, "cortex-a76", "cortex-a55") == "cortex-a55"
    assert chosen(folder, "cortex-a76", "cortex-x2").startswith("2: this CPU has no ")
    unknown = "1: tcomp_options.variant is cortex-a57; the library has cortex-x2, cortex-a76, cortex-a55"
    assert chosen(folder, "cortex-a76", "cortex-a57") == unknown


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that the emulator looks for files in first, with the C library of the emulated machine."""
    _, (_, _, libraries) = tools(parse_target("arm64-linux"))
    (tmp_path / "lib").symlink_to(Path(libraries, "lib"))
    return tmp_path


def identify(root: Path, cores: dict[int, int]) -> None:
    """Let CPU number `cpu` be a core with MIDR_EL1 `cores[cpu]`."""
    for cpu, identity in cores.items():
        path = root / f"sys/devices/system/cpu/cpu{cpu}/regs/identification/midr_el1"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"0x{identity:016x}\n")


@pytest.mark.parametrize(
    ("cores", "variant"),
    [
        ((A55, A55), "cortex-a55"),
        ((A55, A76), "cortex-a76"),
        ((A76, A55), "cortex-a76"),
        ((A55, UNKNOWN), "cortex-a76"),
    ],
)
def test_takes_the_code_for_the_fastest_core(
    folder: Path, root: Path, cores: tuple[int, int], variant: str
) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("one CPU cannot stand for two kinds of core")
    identify(root, dict(zip(cpus, cores, strict=True)))
    assert chosen(folder, "cortex-a76", root=root, on=cpus) == variant


def test_the_cores_that_the_options_choose_count(folder: Path, root: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("one CPU cannot stand for two kinds of core")
    identify(root, dict(zip(cpus, (A55, A76), strict=True)))
    for cpu, capacity in zip(cpus, ("446", "1024"), strict=True):
        (root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity").write_text(capacity)
    fast, slow = (chosen(folder, "cortex-a76", "", hint, root=root, on=cpus) for hint in ("1", "2"))
    assert (fast, slow) == ("cortex-a76", "cortex-a55")


def test_only_cores_that_the_process_may_use_count(folder: Path, root: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    identify(root, {cpu: A55, cpu + 1: A76})
    assert chosen(folder, "cortex-a76", root=root, on=[cpu]) == "cortex-a55"


def test_every_variant_equals_the_reference(folder: Path) -> None:
    target, graph = parse_target("arm64-linux"), network()
    _, emulator = tools(target)
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    (expected,) = evaluate(graph, [image])
    assert run(folder / "network.so", target, [image], folder).returncode == 0
    for name in ("cortex-x2", "cortex-a76", "cortex-a55"):
        command = [*emulator, folder / "program", "2", "", name]
        result = subprocess.run(command, input=image.tobytes(), capture_output=True, check=False)
        assert (result.returncode, result.stderr) == (0, b"")
        found = np.frombuffer(result.stdout, np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_weights_are_stored_once(folder: Path, tmp_path: Path) -> None:
    """Rows of weights that panels repeat may differ between ways of packing, but not by a whole copy."""
    tools(parse_target("arm64-linux"))
    shared = compile(network(), tmp_path / "shared.so", CORES, weights="separate").report
    alone = compile(network(), tmp_path / "alone.so", "cortex-x2", weights="separate").report
    assert shared.program.weights_bytes < 1.2 * alone.program.weights_bytes
    assert len(shared.programs) == 3
