"""Code in SVE's vectors of 256 bits: its numbers under qemu, its loops, and CPUs with other vectors."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import test_lanes
from op_samples import arrays_of, check, makes_kernels
from test_emulated import run, tools

import kernel_cycles
from tcomp.api import compile
from tcomp.codegen import c_abi
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.jit import build_kernel
from tcomp.codegen.machine_code import hot_loop, on_stack
from tcomp.relay.builder import GraphBuilder, make_node
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.op import OPS, Op, Sample
from tcomp.relay.types import Array, numpy_dtype
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.selection import schedule

SVE, NEON = parse_target("neoverse-v1"), parse_target("neoverse-v1-neon")
SAMPLES = [(op, sample) for op in OPS.values() if makes_kernels(op) for sample in op.samples]
PARTS = 18
VARIANT = Path(__file__).with_name("variant.c")


def graph_of(samples: Sequence[tuple[Op, Sample]]) -> tuple[Graph, list[Array]]:
    """A graph with a kernel for each sample, and its inputs."""
    g, arrays, results = GraphBuilder("samples"), list[Array](), list[Value]()
    for number, (op, sample) in enumerate(samples):
        operands: list[Value] = []
        for i, array in enumerate(arrays_of(op, sample)):
            if i in sample.constant:
                operands.append(g.constant(array))
            else:
                operands.append(
                    g.input(f"x{number}_{i}", sample.types[i].static_shape, sample.types[i].dtype)
                )
                arrays.append(array)
        parameters = tuple(Value(v.type, v.name) for v in operands)
        inner = make_node(op.name, parameters, sample.attrs)
        body = Graph(parameters, (inner,), inner.outputs, "body")
        results += g.add(make_node("fused", operands, {"body": body})).outputs
    return g.build(*results), arrays


def outputs(graph: Graph, stdout: bytes) -> list[Array]:
    found: list[Array] = []
    begin = 0
    for value in graph.outputs:
        dtype, shape = np.dtype(numpy_dtype(value.dtype)), value.type.static_shape
        found.append(np.frombuffer(stdout, dtype, int(np.prod(shape)), begin).reshape(shape))
        begin += found[-1].nbytes
    assert begin == len(stdout)
    return found


@pytest.mark.parametrize(
    "part", [pytest.param(i, marks=[pytest.mark.slow] if i > 1 else []) for i in range(PARTS)]
)
def test_operators_compute_the_reference(part: int, tmp_path: Path) -> None:
    tools(SVE)
    samples = SAMPLES[part::PARTS]
    graph, arrays = graph_of(samples)
    compile_graph(graph, SVE, tmp_path / "samples.so")
    result = run(tmp_path / "samples.so", SVE, arrays, tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    found, expected = outputs(graph, result.stdout), evaluate(graph, arrays)
    for node, (_, sample) in zip(graph.nodes, samples, strict=True):
        count = len(node.outputs)
        check(found[:count], list(expected[:count]), sample)
        found, expected = found[count:], expected[count:]
    assert not found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a library for SVE and another core is, `network.so`, and two programs: `program` runs it,
    `variant` says which code that is."""
    folder = tmp_path_factory.mktemp("sve")
    tools(SVE)
    compile(test_lanes.network(), folder / "network.so", "arm64-linux+cortex-a55,neoverse-v1")
    assert run(folder / "network.so", SVE, [IMAGE], folder).returncode == 0
    toolchain, _ = tools(SVE)
    flags = ["-std=gnu11", f"-I{folder}", f"-Wl,-rpath,{folder}", "-o", folder / "variant"]
    subprocess.run([*toolchain.command, VARIANT, folder / "network.so", *flags], check=True)
    return folder


IMAGE: Array = np.random.default_rng(1).standard_normal((1, 3, 61, 45)).astype(np.float32)


def on_cpu(program: Path, cpu: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """What a program does on another CPU."""
    emulator, _, _, *rest = tools(SVE)[1]
    command = [emulator, "-cpu", cpu, *rest, program, *arguments]
    return subprocess.run(command, input=IMAGE.tobytes(), capture_output=True, check=False)


@pytest.mark.parametrize(
    ("cpu", "variant"),
    [
        ("max,sve256=on", b"neoverse-v1"),
        ("max,sve512=on", b"cortex-a55"),
        ("max,sve128=on", b"cortex-a55"),
        ("cortex-a76", b"cortex-a55"),
    ],
)
def test_a_network_equals_the_reference(folder: Path, cpu: str, variant: bytes) -> None:
    """In the code for SVE, and where vectors have another length in that for NEON."""
    assert on_cpu(folder / "variant", cpu).stdout == variant
    result = on_cpu(folder / "program", cpu, "2")
    assert (result.returncode, result.stderr) == (0, b"")
    (expected,) = evaluate(test_lanes.network(), [IMAGE])
    (found,) = outputs(test_lanes.network(), result.stdout)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("cpu", "says"),
    [
        ("max,sve512=on", b"no sve of 256 bits (it has 512)"),
        ("max,sve128=on", b"no sve of 256 bits (it has 128)"),
        ("max,sve=off", b"no sve"),
        ("max,sve256=on", b""),
    ],
)
def test_vectors_of_another_length_are_refused(folder: Path, cpu: str, says: bytes) -> None:
    result = on_cpu(folder / "program", cpu, "2", "", "neoverse-v1")
    assert result.returncode == (1 if says else 0)
    assert result.stderr == (
        b"this CPU has " + says + b", which variant neoverse-v1 needs\n" if says else b""
    )


PRODUCTS = {
    "matmul": (kernel_cycles.matmul(128, 768, 768, "float32"), r"fmla z\d+\.s, z\d+\.s, z[0-7]\.s\["),
    "1x1": (kernel_cycles.conv(256, 14, 1024, 1, 1, "float32", 8), r"fmla z\d+\.s, p\d/m, "),
    "3x3": (kernel_cycles.conv(256, 14, 256, 3, 2, "float32", 8), r"fmla z\d+\.s, p\d/m, "),
}
"""Kernels, and how they multiply: by lanes of a register, or by factors that are broadcast by their loads."""


@pytest.mark.parametrize("name", PRODUCTS)
def test_hot_loops_multiply_in_whole_vectors(name: str) -> None:
    kernel, multiply = PRODUCTS[name]
    loop = hot_loop(build_kernel(kernel, SVE).source(), SVE.machine)
    products = [text for text in loop if text.startswith("fmla")]
    assert all(re.match(multiply, text) for text in products)
    assert not on_stack(loop, SVE.machine)
    assert not any(text.startswith(("mov", "dup")) for text in loop), "factors are broadcast by loads"
    assert len(loop) <= (1.4 if name == "matmul" else 2.1) * len(products)


@pytest.mark.parametrize("name", PRODUCTS)
def test_hot_loops_reach_the_peak(name: str) -> None:
    assert test_lanes.part_of_peak(PRODUCTS[name][0], SVE) > 0.98


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_products_of_few_bits_are_those_of_neon(dtype: str) -> None:
    kernel = kernel_cycles.matmul(32, 64, 64, dtype)
    one, other = (c_abi.object_code({"kernel": schedule(kernel, t).function}, t) for t in (SVE, NEON))
    assert one == other


def test_one_length_does_not_change_code_for_others() -> None:
    """LLVM has one set of options for a process: they are those of the target that is compiled for."""
    kernel = kernel_cycles.matmul(32, 64, 64, "float32")
    longer = parse_target('{"tag": "neoverse-v1", "vector_bits": 512}')
    functions = {t: schedule(kernel, t).function for t in (NEON, SVE, longer, parse_target("x86-64-v3"))}

    def code(target: Target) -> bytes:
        return c_abi.object_code({"kernel": functions[target]}, target)

    alone = {target: code(target) for target in functions}
    assert len(set(alone.values())) == len(functions)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(code, [*functions] * 3)) == [*alone.values()] * 3
