"""The static program that times a kernel: it runs here as it does on a device."""

from __future__ import annotations

import re
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from runnable import WIDEST

from tcomp.codegen import c_abi
from tcomp.codegen.benchmark import KERNEL, Linker, Options, arguments_of, outputs_of
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.types import Array
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule


@dataclass(frozen=True)
class Built:
    """The program of a product, in a folder with its data; `texts` are its arguments."""

    kernel: Kernel
    inputs: list[Array]
    folder: Path
    texts: list[str]

    def run(self, options: Options) -> subprocess.CompletedProcess[str]:
        command = options.command("./program", self.texts)
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("benchmark")
    b = GraphBuilder()
    kernel = Kernel(b.build(b.op("matmul", b.input("a", (24, 32)), b.input("b", (32, 48)))), frozenset({1}))
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(v.type.static_shape).astype(np.float32) for v in kernel.body.inputs]
    scheduled = schedule(kernel, WIDEST)
    arguments = arguments_of(kernel, scheduled, inputs)
    code = c_abi.object_code({KERNEL: scheduled.function}, WIDEST)
    Linker(WIDEST, folder).link(code, len(arguments), folder / "program")
    for index, argument in enumerate(arguments):
        (folder / f"data{index}").write_bytes(argument.data or b"")
    return Built(kernel, inputs, folder, [a.text(f"data{i}") for i, a in enumerate(arguments)])


def samples(output: str) -> list[tuple[float, int]]:
    return [(float(s), int(n)) for s, n in re.findall(r"^([0-9.e+-]+) (\d+)$", output, re.MULTILINE)]


def test_it_needs_nothing(built: Built) -> None:
    said = subprocess.run(["ldd", built.folder / "program"], capture_output=True, text=True, check=False)
    assert "not a dynamic executable" in said.stderr + said.stdout


def test_numbers_and_times(built: Built) -> None:
    done = built.run(Options(outputs="out"))
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = outputs_of(built.kernel, (built.folder / "out").read_bytes())
    np.testing.assert_allclose(found, built.inputs[0] @ built.inputs[1], rtol=1e-4, atol=1e-5)
    timed = samples(done.stdout)
    assert len(timed) in (5, 10, 15)
    assert sum(seconds * runs for seconds, runs in timed) > Options.minimum / 6, (
        "warm runs are faster than the first"
    )


def test_what_is_asked_for(built: Built) -> None:
    ((_, runs),) = samples(built.run(Options(number=7)).stdout)
    assert runs == 7
    assert samples(built.run(Options(number=-1)).stdout) == []
    ((_, runs),) = samples(built.run(Options(abandon=0.0)).stdout)
    assert runs == 2, "slower than what is known: no more runs than it takes to see that"


def test_failures(built: Built) -> None:
    assert built.run(Options(seconds=1, number=1 << 40)).returncode == -signal.SIGALRM
    done = replace(built, texts=["99:missing", *built.texts[1:]]).run(Options())
    assert (done.returncode, done.stderr) == (1, "cannot read missing: No such file or directory\n")
    with pytest.raises(ValueError, match="wrote 3 bytes of outputs, the kernel has 4608"):
        outputs_of(built.kernel, b"abc")
