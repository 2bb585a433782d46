"""`tcomp bench --static` for ARM: one file that runs under qemu without any library of the system."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from test_emulated import QEMU, network

from tcomp.cli import main
from tcomp.codegen.toolchain import find_static_toolchain
from tcomp.errors import BuildError
from tcomp.relay.printer import save_graph
from tcomp.target.parse import parse_target


def emulator(target: str) -> str:
    name = QEMU[parse_target(target).machine][0]
    if shutil.which(name) is None:
        pytest.skip(f"no {name}: apt-get install qemu-user")
    try:
        find_static_toolchain(parse_target(target))
    except BuildError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "network.relay"
    save_graph(network(), path)
    return path


@pytest.mark.parametrize("target", ["arm64-linux", "arm64-android", "armv7-linux", "armv7-android"])
def test_runs_and_is_right(
    target: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qemu, program = emulator(target), tmp_path / "bench"
    assert main(["bench", "--static", "-o", str(program), str(model), "--target", target]) == 0
    assert "run it on the device" in capsys.readouterr().out
    command = [qemu, program, "--runs", "3", "--threads", "2", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["target"].startswith(target)
    assert facts["threads"] == 2
    assert facts["excess"] < 1
    assert len(facts["times"]) == 3


def test_says_what_the_cpu_lacks(model: Path, tmp_path: Path) -> None:
    qemu, program = emulator("cortex-a76"), tmp_path / "bench"
    assert main(["bench", "--static", "-o", str(program), str(model), "--target", "cortex-a76"]) == 0
    command = [qemu, "-cpu", "cortex-a53", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "this CPU has no dotprod" in result.stderr
