"""Libraries for ARM under qemu: their numbers, and what they say on a CPU that lacks features."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcomp.api import optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.emulation import vector_options
from tcomp.codegen.toolchain import Toolchain, find_toolchain
from tcomp.errors import BuildError
from tcomp.relay.attributes import graph as graph_attribute
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.types import Array
from tcomp.target.parse import parse_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import anchors_of
from tcomp.tensor.knobs import ALGORITHM
from tcomp.tensor.selection import choices_for
from tcomp.tuner.task import kernels

PROGRAM = Path(__file__).with_name("run_library.c")
QEMU = {
    "aarch64": ("qemu-aarch64", "/usr/aarch64-linux-gnu"),
    "arm": ("qemu-arm", "/usr/arm-linux-gnueabihf"),
}
"""The emulator, and where Debian's cross compilers keep the C library of its machine."""


def tools(target: Target) -> tuple[Toolchain, list[str]]:
    """What builds for `target` and what runs that here.

    It optimizes, as what links libraries does: zig makes the parts of a mode once.
    """
    emulator, libraries = QEMU[target.machine]
    if shutil.which(emulator) is None or not Path(libraries).is_dir():
        pytest.skip(f"no {emulator} with {libraries}: apt-get install qemu-user and Debian's cross compilers")
    try:
        found = find_toolchain(target)
    except BuildError as error:
        pytest.skip(str(error))
    toolchain = replace(found, command=(*found.command, "-O1"))
    return toolchain, [emulator, *vector_options(target), "-L", libraries]


def network() -> Graph:
    """A strided convolution with few channels, a 3x3 one, a depthwise one, a mean and a classifier."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    g = GraphBuilder("network")
    x = g.input("image", (1, 3, 32, 32))
    for shape, strides, groups in (((24, 3, 3, 3), 2, 1), ((24, 24, 3, 3), 1, 1), ((24, 1, 3, 3), 1, 24)):
        filters = g.constant(weights(*shape))
        x = g.op("conv2d", x, filters, strides=(strides,) * 2, padding=(1,) * 4, groups=groups)
        x = g.op("relu", x)
    x = g.op("reduce_mean", x, axes=(2, 3), keepdims=False)
    x = g.op("softmax", g.op("matmul", x, g.constant(weights(24, 10))), axis=1)
    return g.build(x)


def run(
    library: Path, target: Target, arrays: Sequence[Array], folder: Path, seconds: float = 120
) -> subprocess.CompletedProcess[bytes]:
    toolchain, emulator = tools(target)
    program = folder / "program"
    flags = ["-std=gnu11", f"-I{folder}", f"-Wl,-rpath,{folder}"]
    subprocess.run([*toolchain.command, *flags, PROGRAM, library, "-o", program, "-lm"], check=True)
    data = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return subprocess.run(
        [*emulator, program, "2"], input=data, capture_output=True, check=False, timeout=seconds
    )


@pytest.mark.parametrize("name", ["arm64-linux", "cortex-a76", "armv7-linux"])
def test_equals_the_reference(name: str, tmp_path: Path) -> None:
    target, graph = parse_target(name), network()
    tools(target)
    library = tmp_path / "network.so"
    compile_graph(optimize(graph, target), target, library)
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    result = run(library, target, [image], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    (expected,) = evaluate(graph, [image])
    found = np.frombuffer(result.stdout, np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["arm64-linux", "cortex-a55", "armv7-linux"])
def test_pooling_in_the_kernel_of_a_convolution(name: str, tmp_path: Path) -> None:
    """As for a core whose cache does not hold what the convolution makes."""
    own = parse_target(name)
    tools(own)
    nearest, *others = own.cache_bytes
    target = replace(own, cache_bytes=(nearest, 1024, *others[1:]))
    rng, g = np.random.default_rng(0), GraphBuilder("pooled")
    image, filters = (rng.standard_normal(s).astype(np.float32) for s in ((1, 3, 34, 29), (20, 3, 5, 5)))
    x = g.op("conv2d", g.input("image", image.shape), g.constant(filters), strides=(2, 2), padding=(2,) * 4)
    x = g.op("max_pool2d", g.op("relu", x), kernel=(3, 3), strides=(2, 2), padding=(1,) * 4)
    graph = g.build(g.op("tanh", x))
    fused = optimize(graph, target)
    bodies = [graph_attribute(n.attrs, "body") for n in fused.nodes if n.op == "fused"]
    assert ["conv2d", "max_pool2d"] in [[n.op for n in anchors_of(body)] for body in bodies]
    library = tmp_path / "pooled.so"
    compile_graph(fused, target, library)
    result = run(library, target, [image], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    (expected,) = evaluate(graph, [image])
    found = np.frombuffer(result.stdout, np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cortex-a76", "cortex-a55", "neoverse-v1", "armv7-linux"])
def test_strassens_algorithm(name: str, tmp_path: Path) -> None:
    """A product and a pointwise convolution that take it where they may, with rows that do not fit."""
    target, rng = parse_target(name), np.random.default_rng(1)
    tools(target)
    g = GraphBuilder("network")
    x, image = g.input("x", (125, 512)), g.input("image", (1, 512, 14, 13))
    y = g.op("matmul", x, g.constant(rng.standard_normal((512, 768)).astype(np.float32) / 16), strassen=True)
    filters = g.constant(rng.standard_normal((512, 512, 1, 1)).astype(np.float32) / 16)
    z = g.op("relu", g.op("conv2d", image, filters, strassen=True))
    graph = g.build(g.op("gelu", y), z)
    optimized = optimize(graph, target)
    algorithms = [choices_for(k, target)[1].default.get(ALGORITHM) for k, _ in kernels(optimized)]
    assert {"matmul_strassen_cpu", "conv_strassen_cpu"} <= set(algorithms)
    arrays = [rng.standard_normal(v.type.static_shape).astype(np.float32) for v in graph.inputs]
    library = tmp_path / "libstrassen.so"
    compile_graph(optimized, target, library)
    done = run(library, target, arrays, tmp_path)
    assert done.returncode == 0, done.stderr
    found = np.frombuffer(done.stdout, np.float32)
    expected = np.concatenate([v.ravel() for v in evaluate(graph, arrays)])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "cpu", "missing"),
    [("cortex-a76", "cortex-a53", b"dotprod"), ("armv7-linux", "cortex-a9,neon=off", b"neon")],
)
def test_refuses_a_cpu_that_lacks_a_feature(name: str, cpu: str, missing: bytes, tmp_path: Path) -> None:
    target = parse_target(name)
    _, emulator = tools(target)
    library = tmp_path / "network.so"
    compile_graph(optimize(network(), target), target, library)
    image = np.zeros((1, 3, 32, 32), np.float32)
    assert run(library, target, [image], tmp_path).returncode == 0
    old = [*emulator[:1], "-cpu", cpu, *emulator[1:]]
    result = subprocess.run(
        [*old, tmp_path / "program"], input=image.tobytes(), capture_output=True, check=False
    )
    assert result.returncode == 1
    assert b"this CPU has no " + missing in result.stderr
