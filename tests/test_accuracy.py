"""Precision `fast` within a tolerance: what is compared, what is taken back, what is said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tcomp
from tcomp.cli import main
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.printer import save_graph
from tcomp.rounding import evaluate_rounded, relative_error, worst_kernels
from tcomp.runtime import load
from tcomp.target.host import host_target
from tcomp.target.target import TARGETS
from tcomp.tensor.groups import MOST_STEPS
from tcomp.transform.lower_precision import LowerPrecision
from tcomp.transform.pipeline import optimize

HERE = {dtype: replace(host_target(), fast_dtype=dtype) for dtype in ("float16", "bfloat16")}
"""This machine, said to multiply pairs of a type faster than float32; it computes bfloat16 in any case."""
A76 = TARGETS["cortex-a76"]
needs_fp16 = pytest.mark.skipif(not host_target().has("avx512fp16"), reason="this CPU has no AVX512-FP16")
both_types = pytest.mark.parametrize("dtype", [pytest.param("float16", marks=needs_fp16), "bfloat16"])


def network(loud: float = 1.0) -> Graph:
    """Three products between norms; what the second one multiplies is `loud` times larger."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    ones, zeros = builder.constant(np.ones(32, np.float32)), builder.constant(np.zeros(32, np.float32))
    x = builder.op("relu", builder.op("layer_norm", builder.input("x", (16, 32)), ones, zeros, axis=1))
    for name in ("first", "loud", "third"):
        weight = (rng.standard_normal((32, 32)) / 4).astype(np.float32)
        x = builder.op("relu", builder.op("matmul", x, builder.constant(weight), name=name))
        scale = loud if name == "first" else 1 / loud if name == "loud" else 1.0
        x = builder.op("mul", x, builder.constant(np.float32(scale)))
    return builder.build(builder.op("softmax", x, axis=1))


def run(library: Path) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(5).standard_normal((16, 32)).astype(np.float32)
    with load(library) as model:
        (found,) = model(x)
    return found, x


@both_types
def test_an_accurate_model_keeps_nothing(dtype: str, tmp_path: Path) -> None:
    compiled = tcomp.compile(network(), tmp_path / "m.so", HERE[dtype], precision="fast")
    assert compiled.precision.startswith(f"precision fast: 3 of 3 products in {dtype}; error of ")
    found, x = run(tmp_path / "m.so")
    (expected,) = evaluate(network(), [x])
    assert 0 < relative_error(found, expected) < 2e-2


@pytest.mark.slow
@needs_fp16
def test_a_kernel_that_overflows_goes_back_to_float32(tmp_path: Path) -> None:
    graph = network(loud=1e6)
    compiled = tcomp.compile(graph, tmp_path / "m.so", HERE["float16"], precision="fast")
    assert "kept in float32 for accuracy" in compiled.precision
    found, x = run(tmp_path / "m.so")
    (expected,) = evaluate(graph, [x])
    assert relative_error(found, expected) < 2e-2


def test_bfloat16_does_not_overflow_where_float32_does_not(tmp_path: Path) -> None:
    compiled = tcomp.compile(network(loud=1e6), tmp_path / "m.so", HERE["bfloat16"], precision="fast")
    assert compiled.precision.startswith("precision fast: 3 of 3 products in bfloat16; error of ")
    found, x = run(tmp_path / "m.so")
    (expected,) = evaluate(network(loud=1e6), [x])
    assert relative_error(found, expected) < 2e-2


@pytest.mark.slow
@both_types
def test_no_tolerance_means_float32(dtype: str, tmp_path: Path) -> None:
    target = HERE[dtype]
    compiled = tcomp.compile(network(), tmp_path / "m.so", target, precision="fast", tolerance=0.0)
    assert compiled.precision.startswith(f"precision fast: 0 of 3 products in {dtype}; 2 kernels kept")
    found, x = run(tmp_path / "m.so")
    (expected,) = evaluate(network(), [x])
    assert relative_error(found, expected) < 1e-5


def test_a_kernel_beyond_the_tolerance_goes_back_to_float32(tmp_path: Path) -> None:
    fine = tcomp.compile(network(), tmp_path / "m.so", HERE["bfloat16"], precision="fast", tolerance=1.0)
    (error,) = re.findall(r"error of `output0` ([\d.]+)%", fine.precision)
    allowed = float(error) / 100 * 0.9
    kept = tcomp.compile(network(), tmp_path / "m.so", HERE["bfloat16"], precision="fast", tolerance=allowed)
    assert re.search(
        r"[012] of 3 products in bfloat16; \d kernels? kept in float32 for accuracy", kept.precision
    )
    found, x = run(tmp_path / "m.so")
    (expected,) = evaluate(network(), [x])
    assert relative_error(found, expected) < 2e-2


def test_kernels_that_write_or_read_infinities_rank_first() -> None:
    # The factor is folded into the weights of `loud`, whose outputs are beyond float16.
    exact = optimize(network(loud=1e6), TARGETS["x86-64-v4"])
    x = np.random.default_rng(5).standard_normal((16, 32)).astype(np.float32)
    ranking = list(worst_kernels(exact, LowerPrecision().run(exact), [x], TARGETS["x86-64-v4"]))
    assert set(ranking[:2]) == {"loud", "third"}
    assert set(ranking) == {"first", "loud", "third"}


def test_kernels_rank_by_what_their_rounding_does_to_outputs() -> None:
    """Two products of the same relative error, of which one makes sixteen times as much of the sum."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    ones, zeros = builder.constant(np.ones(32, np.float32)), builder.constant(np.zeros(32, np.float32))
    x = builder.op("layer_norm", builder.input("x", (16, 32)), ones, zeros, axis=1)
    products: list[Value] = []
    for name, size in (("loud", 16), ("quiet", 1)):
        weight = builder.constant((rng.standard_normal((32, 32)) / 4).astype(np.float32))
        scaled = builder.op("mul", x, builder.constant(np.float32(size)))
        products.append(builder.op("matmul", builder.op("relu", scaled), weight, name=name))
    exact = optimize(builder.build(builder.op("add", *products)), A76)
    lowered = LowerPrecision().run(exact)
    data = np.random.default_rng(5).standard_normal((16, 32)).astype(np.float32)
    assert [n.name for n in lowered.nodes if n.name in ("loud", "quiet")] == ["quiet", "loud"]
    assert list(worst_kernels(exact, lowered, [data], A76)) == ["loud", "quiet"]


@pytest.mark.parametrize(("depth", "drift"), [(64, 0.0), (96, 0.5), (960, 0.0), (960, 1.0)])
def test_sums_of_float16_are_estimated(depth: int, drift: float) -> None:
    """The kernel's short sums, written out: one addition after the other, rounded."""
    rng = np.random.default_rng(0)
    left = np.abs(rng.standard_normal((100, depth))).astype(np.float16)
    right = (rng.standard_normal((depth, 100)) + drift).astype(np.float16)
    products = left.astype(np.float64)[:, :, None] * right.astype(np.float64)
    summed = np.zeros((100, 100))
    for first in range(0, depth, MOST_STEPS):
        short = np.zeros((100, 100), np.float16)
        for step in range(first, min(depth, first + MOST_STEPS)):
            short = (short + products[:, step]).astype(np.float16)
        summed += short
    builder = GraphBuilder()
    factors = builder.input("left", left.shape, "float16"), builder.input("right", right.shape, "float16")
    graph = builder.build(builder.op("matmul", *factors, out_dtype="float32"))
    exact, (estimate,) = products.sum(axis=1), next(evaluate_rounded(graph, [left, right], A76))
    found, estimated = (np.sqrt(np.mean((x - exact) ** 2)) for x in (summed, estimate))
    assert found / 1.25 < estimated < 1.25 * found


@pytest.mark.parametrize(("target", "draws"), [("cortex-a76", 3), ("cuda:sm_80", 1)])
def test_only_short_sums_are_drawn(target: str, draws: int) -> None:
    builder = GraphBuilder()
    factors = builder.input("left", (2, 8), "float16"), builder.input("right", (8, 2), "float16")
    graph = builder.build(builder.op("matmul", *factors, out_dtype="float32"))
    arrays = [np.full(shape, 1 / 3, np.float16) for shape in ((2, 8), (8, 2))]
    runs = [one.tobytes() for (one,) in evaluate_rounded(graph, arrays, TARGETS[target])]
    assert len(set(runs)) == len(runs) == draws


def test_other_targets_are_not_checked_here(tmp_path: Path) -> None:
    compiled = tcomp.compile(network(), tmp_path / "m.so", "x86-64-v3", precision="fast")
    assert "`x86-64-v3` multiplies 16-bit floats no faster; all stays in float32" in compiled.precision


@pytest.mark.skipif(host_target().fast_dtype is not None, reason="this CPU has a faster 16-bit type")
def test_a_machine_without_a_faster_type_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, library = tmp_path / "m.relay", tmp_path / "m.so"
    save_graph(network(), model)
    assert main(["compile", str(model), "--precision", "fast", "-o", str(library)]) == 0
    said = f"precision fast: `{host_target().name}` multiplies 16-bit floats no faster; all stays in float32"
    assert said in capsys.readouterr().out
    found, x = run(library)
    np.testing.assert_allclose(found, evaluate(network(), [x])[0], rtol=1e-4, atol=1e-6)


def test_what_overflows_on_another_machine_stays_in_float32(tmp_path: Path) -> None:
    compiled = tcomp.compile(network(loud=1e6), tmp_path / "m.so", "cortex-a76", precision="fast")
    assert "kernels kept in float32 for accuracy (" in compiled.precision
    assert "loud" in compiled.precision
    assert "rounded in numpy, as `cortex-a76` does not run on this machine" in compiled.precision


def test_algorithms_of_another_machine_are_not_checked(tmp_path: Path) -> None:
    compiled = tcomp.compile(network(), tmp_path / "m.so", "cortex-a72", precision="fast")
    assert "accuracy not checked: `cortex-a72` does not run on this machine" in compiled.precision


@pytest.mark.skipif(host_target().has("avx512bf16"), reason="the library would run here")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_zen_4_is_compiled_for_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, library = tmp_path / "m.relay", tmp_path / "m.so"
    save_graph(network(), model)
    options = ["--target", "znver4", "--precision", "fast", "-o", str(library)]
    assert main(["compile", str(model), *options]) == 0
    said = capsys.readouterr().out
    assert "precision fast: 3 of 3 products in bfloat16; error of `" in said
    assert "(allowed 2.00%); rounded in numpy, as `znver4` does not run on this machine" in said
    code = subprocess.run(["objdump", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    products = [line for line in code.splitlines() if "vdpbf16ps" in line]
    assert products
    assert all("zmm" in line for line in products)
    assert "vcvtneps2bf16" in code


@pytest.mark.slow
@both_types
def test_command_line(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, library, inputs = tmp_path / "m.relay", tmp_path / "m.so", tmp_path / "in.npz"
    save_graph(network(), model)
    np.savez(inputs, x=np.ones((16, 32), np.float32))
    options = ["--precision", "fast", "--target", json.dumps({"tag": "llvm", "fast_dtype": dtype})]
    compiling = ["compile", str(model), *options, "-o", str(library)]
    assert main([*compiling, "--check-input", str(inputs), "--tolerance", "0.05", "--json"]) == 0
    assert "(allowed 5.00%)" in json.loads(capsys.readouterr().out)["precision"]
    verifying = ["verify", str(model), *options, "--against", "reference"]
    assert main(verifying) == 0
    assert main([*verifying, "--rtol", "1e-6"]) == 1
    assert "pass `lower-precision` changes the outputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, 4.0], [1.0, 2.0], 1.0),
        ([1.0, np.inf], [1.0, 2.0], np.inf),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([0.0], [0.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_relative_error(actual: list[float], expected: list[float], error: float) -> None:
    assert relative_error(np.array(actual), np.array(expected)) == error
    assert relative_error(np.array([1, 2]), np.array([1, 3])) == 0.5


def test_every_output_counts_where_none_has_a_name(tmp_path: Path) -> None:
    """The first one is far off in 16 bits, the second one exact."""
    builder = GraphBuilder()
    x = builder.input("x", (4, 64))
    weight = builder.constant(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32))
    narrow = builder.op("matmul", builder.op("relu", builder.op("matmul", x, weight)), weight)
    graph = builder.build(narrow, builder.op("relu", x))
    assert graph.output_names == ("output0", "output1")
    done = tcomp.compile(graph, tmp_path / "m.so", HERE["bfloat16"], precision="fast", tolerance=1.0)
    assert re.search("error of `output0` 0.[0-9]*[1-9]", done.precision)
    verified = tcomp.verify(graph, HERE["bfloat16"], against="reference")
    assert set(verified.excess) == {"output0", "output1"}
