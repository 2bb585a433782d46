"""The programs on the page about the C interface compile with a model's header, and run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_programs import library, run, tool

from tcomp.codegen.toolchain import native_toolchain
from tcomp.relay.builder import GraphBuilder

PAGE = Path(__file__).parents[2] / "docs" / "c-abi.md"


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.5 + x, as `model.so`."""
    b = GraphBuilder("model")
    x = b.input("x", (2, 3))
    graph = b.build(b.op("add", x, b.constant(np.full((2, 3), 0.5, np.float32))))
    return library(graph, tmp_path_factory.mktemp("page")).library


def test_a_short_c_program(model: Path) -> None:
    text = block("c")
    assert len(text.splitlines()) <= 30
    (model.parent / "main.c").write_text(text)
    (line,) = re.findall(r"^    (cc main.c .*) && ./main$", PAGE.read_text(), re.MULTILINE)
    flags = ["-Wall", "-Wextra", "-Werror"]
    command = [*native_toolchain().command, *flags, *line.split()[1:]]
    subprocess.run(command, cwd=model.parent, check=True)
    done = subprocess.run(["./main"], cwd=model.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "output0: 0.500000\n"


def test_a_cpp_program(model: Path) -> None:
    compiler = tool("g++", "g++")
    (model.parent / "main.cpp").write_text(block("cpp"))
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-Wl,-rpath,{model.parent}"]
    program = model.parent / "main-cpp"
    subprocess.run([compiler, *flags, model.parent / "main.cpp", model, "-o", program], check=True)
    assert run([program]) == "output0: 0.500000\n"
