"""Compiled libraries: their results, files, dependencies, and failures on the way to them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_models import chain, diamond

from tcomp.codegen import artifact, link
from tcomp.codegen.artifact import Report, compile_graph
from tcomp.codegen.toolchain import Toolchain, native_toolchain
from tcomp.errors import BuildError, GraphError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.runtime import load
from tcomp.target.host import host_target

HOST = host_target()
X = np.random.default_rng(0).standard_normal((4, 32), np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return compile_graph(chain(), HOST, tmp_path_factory.mktemp("chain") / "chain.so")


@pytest.mark.parametrize("weights", ["embed", "separate"])
def test_equals_the_reference(tmp_path: Path, weights: str):
    compile_graph(chain(), HOST, tmp_path / "chain.so", weights=weights)  # pyright: ignore
    assert (tmp_path / "chain.weights").exists() == (weights == "separate")
    found = load(tmp_path / "chain.so", threads=1)(X)
    for actual, expected in zip(found, evaluate(chain(), [X]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_equal_kernels_and_constants_are_one(tmp_path: Path):
    program = compile_graph(diamond(), HOST, tmp_path / "diamond.so").program
    assert len(program.steps) == 5
    assert len(program.kernels) == 3
    assert program.weights_bytes == 64 * 4
    x, y = np.arange(64, dtype=np.float32), -np.arange(64, dtype=np.float32) / 8
    (found,) = load(tmp_path / "diamond.so", threads=1)(y=y, x=x)
    np.testing.assert_allclose(found, np.maximum(x + 1, 0) * np.maximum(y + 1, 0))


def test_undefined_symbols_do_not_link(tmp_path: Path):
    toolchain = native_toolchain()
    (tmp_path / "a.c").write_text(
        'int missing(void);\n__attribute__((visibility("default"))) int tcomp_x(void) { return missing(); }'
    )
    objects = link.compile_c(toolchain, [tmp_path / "a.c"], tmp_path)
    with pytest.raises(BuildError, match="undefined reference to `missing'"):
        link.link(toolchain, HOST, objects, tmp_path / "a.so", tmp_path)


def test_what_is_the_same_for_all_models_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiler, log = tmp_path / "cc", tmp_path / "log"
    compiler.write_text(f'#!/bin/sh\necho "$*" >> {log}\nexec {native_toolchain().command[0]} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(artifact, "find_toolchain", lambda target: Toolchain("logged", (str(compiler),)))
    for runtime in ("threads", "threads", "serial"):
        compile_graph(chain(), HOST, tmp_path / "chain.so", runtime=runtime)
    compiled = [Path(word).name for word in log.read_text().split() if word.endswith(".c")]
    assert compiled.count("model.c") == 3
    assert compiled.count("pool.c") == 2, "for other flags again"
    found = load(tmp_path / "chain.so", threads=1)(X)[0]
    np.testing.assert_allclose(found, evaluate(chain(), [X])[0], rtol=1e-5)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no C compiler found .* install one"):
        compile_graph(chain(), HOST, tmp_path / "chain.so")


def test_symbolic_shapes_are_refused(tmp_path: Path):
    builder = GraphBuilder("dynamic")
    x = builder.input("x", ("batch", 3))
    with pytest.raises(GraphError, match=r"input `x` of `dynamic` has the symbolic shape f32\[batch,3\]"):
        compile_graph(builder.build(x), HOST, tmp_path / "dynamic.so")


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(BuildError, match="there is no folder"):
        compile_graph(chain(), HOST, tmp_path / "nowhere" / "chain.so")


def test_a_failed_build_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compile_graph(chain(), HOST, tmp_path / "chain.so")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "library")

    monkeypatch.setattr("tcomp.codegen.artifact.write_stamp", refuse)
    with pytest.raises(BuildError, match="No space left on device"):
        compile_graph(chain(), HOST, tmp_path / "chain.so")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_rebuilt_library_is_the_new_one(tmp_path: Path):
    path = tmp_path / "model.so"
    compile_graph(chain(), HOST, path)
    first = load(path, threads=1)
    compile_graph(diamond(), HOST, path)
    second = load(path, threads=1)
    assert (first.name, second.name) == ("chain", "diamond")
    assert len(first(X)) == 4


def test_the_program_prints(report: Report):
    text = str(report.program)
    assert "input[0] x: f32[4,32]" in text
    assert "k0 add(input[0], weights+0) -> arena+" in text
    assert f"arena {report.program.arena_bytes} bytes" in text


PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include "chain.h"
#define CHECK(condition) if (!(condition)) { printf("line %d\n", __LINE__); return 1; }
static CHAIN_INPUT0_TYPE x[CHAIN_INPUT0_ELEMENTS];
static float result[CHAIN_OUTPUT0_ELEMENTS], view[CHAIN_OUTPUT1_ELEMENTS], bias[128], same[128];
int main(void) {
  tcomp_context *context = NULL;
  const int64_t shape[] = CHAIN_OUTPUT0_SHAPE;
  CHECK(tcomp_abi_version() == TCOMP_ABI_VERSION && shape[0] == 8)
  CHECK(tcomp_input_count() == CHAIN_INPUT_COUNT && tcomp_input(1) == NULL && tcomp_input(-1) == NULL)
  CHECK(tcomp_input(0)->dtype == CHAIN_INPUT0_DTYPE && tcomp_input(0)->bytes == sizeof x)
  CHECK(strcmp(tcomp_input(0)->name, CHAIN_INPUT0_NAME) == 0)
  tcomp_options options = {0};
  CHECK(tcomp_create(&options, &context) == TCOMP_ERROR_ARGUMENT && context == NULL)
  CHECK(strstr(tcomp_error(NULL), "struct_bytes") != NULL)
  CHECK(tcomp_create(NULL, NULL) == TCOMP_ERROR_ARGUMENT)
  CHECK(tcomp_create(NULL, &context) == TCOMP_OK)
  for (int i = 0; i < 128; i++) x[i] = 2;
  tcomp_buffer in = {x, sizeof x};
  tcomp_buffer out[] = {{result, sizeof result}, {view, sizeof view},
                        {bias, sizeof bias}, {same, sizeof same}};
  CHECK(tcomp_run(context, &in, 1, out, 4) == TCOMP_OK)
  CHECK(view[0] == 1 && bias[0] == -1 && same[5] == 2 && result[0] > 5.43f && result[0] < 5.44f)
  CHECK(tcomp_run(NULL, &in, 1, out, 4) == TCOMP_ERROR_ARGUMENT)
  CHECK(tcomp_run(context, &in, 2, out, 4) == TCOMP_ERROR_ARGUMENT)
  CHECK(tcomp_run(context, NULL, 1, out, 4) == TCOMP_ERROR_ARGUMENT)
  in.bytes--;
  CHECK(tcomp_run(context, &in, 1, out, 4) == TCOMP_ERROR_ARGUMENT)
  CHECK(strcmp(tcomp_error(context), "input 0 (x) has 511 bytes; it must have 512") == 0)
  CHECK(tcomp_set_threads(context, -1) == TCOMP_ERROR_ARGUMENT && tcomp_set_threads(context, 1) == TCOMP_OK)
  tcomp_destroy(context);
  tcomp_destroy(NULL);
  puts("fine");
  return 0;
}
"""


@pytest.mark.parametrize("language", ["c", "c++"])
def test_a_c_program_links_and_runs(report: Report, tmp_path: Path, language: str):
    compiler = shutil.which("g++") if language == "c++" else native_toolchain().command[0]
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "main.c"
    source.write_text(PROGRAM)
    folder = report.library.parent
    flags = ["-x", language, "-Wall", "-Werror", "-I", str(folder), str(source), "-x", "none"]
    command = [compiler, *flags, str(report.library), f"-Wl,-rpath,{folder}", "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True)
    assert subprocess.check_output([str(tmp_path / "main")], text=True) == "fine\n"
