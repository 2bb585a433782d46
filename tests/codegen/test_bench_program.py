"""The static program that checks and times a model: its numbers, its options, what it refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_models import chain, diamond

from tcomp.codegen.artifact import compile_benchmark
from tcomp.codegen.bench_case import BenchCase
from tcomp.codegen.link import compile_c
from tcomp.codegen.toolchain import find_static_toolchain
from tcomp.errors import BuildError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import DTYPES, Array, numpy_dtype
from tcomp.target.host import host_target

pytestmark = pytest.mark.usefixtures("native_static_programs")

X = np.random.default_rng(0).standard_normal((4, 32), np.float32)


def build(graph: Graph, inputs: list[Array], expected: list[Array], folder: Path) -> Path:
    program = folder / "program"
    try:
        compile_benchmark(graph, host_target(), program, BenchCase(inputs, expected, 1e-4, 1e-6, threads=2))
    except BuildError as error:
        if "cannot find -l" not in str(error):
            raise
        pytest.skip(f"{error}: install the static C library")
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_ziglang_knows_this_machine(tmp_path: Path) -> None:
    """That it links, what it made for ARM shows."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no ziglang")
    (tmp_path / "source.c").write_text("#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n")
    toolchain = find_static_toolchain(host_target())
    assert toolchain.name == "zig cc"
    (made,) = compile_c(toolchain, [tmp_path / "source.c"], tmp_path)
    assert made.read_bytes()[:4] == b"\x7fELF"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(chain(), [X], evaluate(chain(), [X]), tmp_path_factory.mktemp("chain"))


def test_needs_nothing_and_leaves_nothing_beside_it(program: Path) -> None:
    assert [path.name for path in program.parent.iterdir()] == ["program"]
    content = program.read_bytes()
    assert content[:4] == b"\x7fELF"
    assert b".interp" not in content


def test_prints_times(program: Path) -> None:
    result = run(program, "--runs", "5", "--warmup", "0")
    assert (result.returncode, result.stderr) == (0, "")
    assert "model    chain\n" in result.stdout
    assert "threads  2\n" in result.stdout
    assert "of 5 runs" in result.stdout


def test_json(program: Path) -> None:
    facts = json.loads(run(program, "--json", "--runs", "7", "--threads", "1").stdout)
    assert (facts["model"], facts["threads"], len(facts["times"])) == ("chain", 1, 7)
    assert facts["min"] == min(facts["times"]) <= facts["median"]
    assert facts["median"] == pytest.approx(np.median(facts["times"]))
    quartiles = np.quantile(facts["times"], [0.25, 0.75])
    assert facts["spread"] == pytest.approx(float(np.diff(quartiles)[0]) / facts["median"], rel=1e-3)
    assert facts["excess"] <= 1


@pytest.mark.parametrize("output", range(4))
def test_wrong_numbers_are_told_before_times(output: int, tmp_path: Path) -> None:
    expected = [array.copy() for array in evaluate(chain(), [X])]
    expected[output].flat[-1] += 3e-4 * np.abs(expected[output]).max()
    result = run(build(chain(), [X], expected, tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert f"output {output} (" in result.stderr
    assert "is wrong: 3" in result.stderr or "is wrong: 2.9" in result.stderr


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "float32"])
def test_every_element_type_is_compared(dtype: str, tmp_path: Path) -> None:
    builder = GraphBuilder("copy")
    graph = builder.build(builder.input("x", (11,), dtype))
    values = np.array([0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1]).astype(numpy_dtype(dtype))
    if values.dtype.kind not in "biu":
        values[:4] = np.array([np.nan, np.inf, -np.inf, 3e-5], np.float32).astype(values.dtype)
    assert run(build(graph, [values], [values], tmp_path), "--runs", "1").returncode == 0
    other = values.copy()
    other[-1] = 0
    assert run(build(graph, [values], [other], tmp_path), "--runs", "1").returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [["--fast"], ["--runs"], ["--runs", "0"], ["--runs", "x"], ["--threads", "-1"], ["--warmup", "1e9"]],
)
def test_refuses_bad_arguments(program: Path, arguments: list[str]) -> None:
    result = run(program, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr


def test_help_explains(program: Path) -> None:
    result = run(program, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--warmup N" in result.stdout


def test_two_inputs_come_in_order(tmp_path: Path) -> None:
    x, y = np.arange(64, dtype=np.float32), np.arange(64, dtype=np.float32) / 8 - 3
    graph = diamond()
    assert run(build(graph, [x, y], evaluate(graph, [x, y]), tmp_path), "--runs", "1").returncode == 0
