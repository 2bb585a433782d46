"""Libraries of models for GPUs, run on an emulated one: numbers, where tensors are, and what goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from device_arrays import OnGpu, WithDlpack

from tcomp import api
from tcomp.cli import main
from tcomp.codegen.artifact import compile_graph
from tcomp.codegen.jit import build_kernel
from tcomp.codegen.toolchain import native_toolchain
from tcomp.errors import BuildError, InputError, TargetError, TcompError
from tcomp.plan.planner import distinct_kernels
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.types import Array, numpy_dtype
from tcomp.runtime import load
from tcomp.target.cuda_driver import driver
from tcomp.target.cuda_host import gpu_target
from tcomp.target.host import host_target
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel

pytestmark = pytest.mark.emulated

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def network() -> Graph:
    """Convolutions, a residual, a concatenation whose second part starts at an odd place, a classifier."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    g = GraphBuilder("network")
    x = g.input("image", (1, 3, 9, 9))
    y = g.op("relu", g.op("conv2d", x, g.constant(weights(5, 3, 3, 3)), padding=(1,) * 4))
    z = g.op("conv2d", y, g.constant(weights(5, 5, 1, 1)))
    y = g.op("concat", g.op("add", y, z), g.op("max_pool2d", z, kernel=(3, 3), padding=(1,) * 4), axis=1)
    y = g.op("reduce_mean", y, axes=(2, 3), keepdims=False)
    return g.build(g.op("softmax", g.op("matmul", y, g.constant(weights(10, 7))), axis=1))


def image(seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((1, 3, 9, 9)).astype(np.float32)


@pytest.fixture(scope="module")
def library(gpu: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("library") / "network.so"
    compile_graph(api.optimize(network(), gpu), gpu, output)
    return output


def test_equals_the_reference_on_every_run(library: Path) -> None:
    graph, model = network(), load(library)
    for seed in range(3):  # The second run is the first that launches a graph recorded before.
        (expected,) = evaluate(graph, [image(seed)])
        (found,) = model(image(seed))
        np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_its_kernels_have_sizes(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--size", str(library)]) == 0
    said = capsys.readouterr().out
    assert "kernel0a_conv2d_relu" in said
    assert "code of 0 kernels" not in said


def test_contexts_are_independent(library: Path) -> None:
    one = load(library)
    other = one.new_context()
    (first,), (second,) = one(image(1)), other(image(2))
    np.testing.assert_array_equal(one(image(1))[0], first)
    assert not np.array_equal(first, second)


def test_every_step_is_profiled(library: Path) -> None:
    steps = load(library).profile(image())
    assert len(steps) > 3
    assert all(step.seconds > 0 for step in steps)


def test_tunes_on_the_gpu_here(gpu: Target, tmp_path: Path) -> None:
    module, log = tmp_path / "small.py", tmp_path / "log.jsonl"
    module.write_text(
        "import numpy as np\nfrom tcomp.relay.builder import GraphBuilder\n\n\ndef net():\n"
        "    g = GraphBuilder('net')\n    x = g.input('x', (8, 32))\n"
        "    return g.build(g.op('softmax', g.op('relu', x), axis=1))\n"
    )
    command = [sys.executable, "-m", "tcomp", "tune", "--target", "cuda", "small:net", "--trials", "3"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run(
        [*command, "--workers", "1", "--log", log],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = log.read_text()
    assert text.count('"status":"ok"') >= 3
    assert '"device":"Emulated GPU"' in text
    assert '"registers":"32"' in text
    assert '"cuda":"nvcc 0.0"' in text


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("EMULATED_DEVICES", "0", "no GPU here: no CUDA-capable device is detected .*; `nvidia-smi`"),
        (
            "EMULATED_CAPABILITY",
            "75",
            "code for cuda:sm_80, and Emulated GPU has compute capability 7.5; compile it for cuda:sm_75$",
        ),
        ("EMULATED_CAPABILITY", "72", "capability 7.2; compile it for cuda:sm_70$"),
        ("EMULATED_CAPABILITY", "61", "capability 6.1, and tcomp makes code for 7.0 and newer: take another"),
        (
            "EMULATED_MEMORY",
            "8192",
            r"GPU: memory for .*: out of memory .* takes \d+ bytes for weights and \d+ for tensors: end",
        ),
    ],
)
def test_says_what_is_wrong_when_it_is_loaded(
    library: Path, variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(TcompError, match=said):
        load(library)


def test_newer_gpus_take_it(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMULATED_CAPABILITY", "120")
    assert load(library)(image())[0].shape == (1, 7)


def test_several_architectures_in_one_library(
    gpu: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = GraphBuilder("two")
    x = g.input("x", (4, 8))
    output = tmp_path / "two.so"
    api.compile(g.build(g.op("relu", x)), output, "cuda:sm_80,cuda:sm_90a")
    for capability, variant in (("80", "cuda:sm_80"), ("89", "cuda:sm_80"), ("90", "cuda:sm_90a")):
        monkeypatch.setenv("EMULATED_CAPABILITY", capability)
        model = load(output)
        assert model.variant == variant
        np.testing.assert_array_equal(model(-np.ones((4, 8), np.float32))[0], 0)
    with pytest.raises(TcompError, match="are both sm_80, by which a library chooses code"):
        api.compile(g.build(g.op("relu", x)), output, "cuda:sm_80,nvidia/a100")


def test_needs_a_driver(library: Path) -> None:
    """A process of its own: here the stand-in for the driver is loaded."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    code = f"import tcomp.runtime; tcomp.runtime.load({str(library)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        pytest.skip("this machine has a driver")
    assert "no NVIDIA driver here: libcuda.so.1 is not to be loaded" in done.stderr


def test_tensors_stay_in_the_memory_of_the_gpu(library: Path, tmp_path: Path) -> None:
    """A C program that gives pointers of the device, and one that is at an odd place."""
    source = Path(__file__).with_name("device_pointers.c")
    program, folder = tmp_path / "program", library.parent
    command = [*native_toolchain().command, f"-I{folder}", source, library, "-o", program]
    subprocess.run([*command, "-ldl", f"-Wl,-rpath,{folder}"], check=True)
    done = subprocess.run([program], input=image().tobytes(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    (expected,) = evaluate(network(), [image()])
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32), expected[0], **TOLERANCE)


def test_fast_products_take_float16(gpu: Target, tmp_path: Path) -> None:
    graph = api.optimize(network(), gpu, precision="fast")
    assert sum("f16" in str(v.type) for n in graph.nodes for v in n.inputs) > 3
    compile_graph(graph, gpu, tmp_path / "fast.so")
    (expected,) = evaluate(network(), [image()])
    np.testing.assert_allclose(load(tmp_path / "fast.so")(image())[0], expected, atol=1e-3)


@pytest.mark.parametrize("stream", [None, 1])
def test_arrays_of_other_libraries_stay_on_the_gpu(library: Path, stream: int | None) -> None:
    model = load(library)
    (expected,) = evaluate(network(), [image()])
    np.testing.assert_allclose(model(OnGpu(image(), stream))[0], expected, **TOLERANCE)
    output = OnGpu(np.zeros((1, 7), np.float32))
    model.run_into([OnGpu(image())], [output])
    np.testing.assert_allclose(output.read(), expected, **TOLERANCE)


def test_arrays_with_dlpack_stay_on_the_gpu(library: Path) -> None:
    model = load(library)
    (expected,) = evaluate(network(), [image()])
    np.testing.assert_allclose(model(WithDlpack(image(), (243, 81, 9, 1)))[0], expected, **TOLERANCE)
    output = WithDlpack(np.zeros((1, 7), np.float32), offset=64)
    before = WithDlpack.freed
    model.run_into([WithDlpack(image())], [output])
    np.testing.assert_allclose(output.read(), expected, **TOLERANCE)
    assert WithDlpack.freed == before + 2
    with pytest.raises(InputError, match="input 0 `image` is not contiguous; copy it"):
        model(WithDlpack(image(), (1, 3, 27, 243)))
    with pytest.raises(InputError, match=r"is int32\[1,3,9,9\]; it must be"):
        model(WithDlpack(image().view(np.int32)))
    with pytest.raises(InputError, match=r"is bfloat16\[1,3,9,9\]; it must be"):
        model(WithDlpack(image().astype(numpy_dtype("bfloat16"))))
    with pytest.raises(InputError, match="cannot be read in the GPU's memory: elements of DLPack's type 5"):
        model(WithDlpack(image().astype(np.complex64)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strides": (4, 4, 4, 4)}, "input 0 `image` is not contiguous; copy it"),
        ({"shape": (1, 3, 9, 8)}, r"input 0 `image` has shape float32\[1,3,9,8\]"),
        ({"typestr": "<i4"}, r"is int32\[1,3,9,9\]; it must be"),
    ],
)
def test_arrays_on_the_gpu_must_fit(library: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(library)(OnGpu(image(), **changes))
    read_only = OnGpu(np.zeros((1, 7), np.float32))
    read_only.__cuda_array_interface__["data"] = (read_only.pointer, True)
    with pytest.raises(InputError, match=r"output 0 .* is a read-only array"):
        load(library).run_into([image()], [read_only])


def test_models_on_the_cpu_refuse_arrays_on_a_gpu(gpu: Target, tmp_path: Path) -> None:
    g = GraphBuilder("one")
    api.compile(g.build(g.op("relu", g.input("x", (1, 3, 9, 9)))), tmp_path / "one.so", host_target())
    with pytest.raises(InputError, match="is in a GPU's memory, and the model runs on the CPU"):
        load(tmp_path / "one.so")(OnGpu(image()))


@pytest.mark.slow
def test_tensor_cores_read_and_write_blocks_of_channels(gpu: Target, tmp_path: Path) -> None:
    """Layers as those of a residual network, whose channels fill blocks and leave a part of one."""
    rng = np.random.default_rng(0)

    def conv(x: Value, filters: int, kernel: int, stride: int = 1) -> Value:
        shape = (filters, int(x.type.static_shape[1]), kernel, kernel)
        weight = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        attrs = {"strides": (stride,) * 2, "padding": (kernel // 2,) * 4}
        return g.op("conv2d", x, g.constant(weight), **attrs)

    g = GraphBuilder("residual")
    x = g.op("relu", conv(g.input("image", (1, 3, 18, 18)), 32, 3, 2))
    x = g.op("max_pool2d", x, kernel=(3, 3), padding=(1,) * 4)
    y = g.op("relu", conv(g.op("relu", conv(x, 16, 1)), 20, 3))
    x = g.op("relu", g.op("add", conv(y, 32, 1), x))
    graph = g.build(g.op("reduce_mean", conv(x, 64, 3, 2), axes=(2, 3), keepdims=False))
    optimized = api.optimize(graph, gpu, precision="fast")
    layouts = [
        (a.attrs["data_layout"], a.attrs["out_layout"])
        for n in optimized.nodes
        if n.op == "fused" and (a := Kernel.of(n).anchor) is not None and a.op == "conv2d"
    ]
    assert layouts.count(("NCHW8c", "NCHW8c")) >= 3, layouts
    compile_graph(optimized, gpu, tmp_path / "residual.so")
    data = rng.standard_normal((1, 3, 18, 18)).astype(np.float32)
    (expected,) = evaluate(graph, [data])
    (found,) = load(tmp_path / "residual.so")(data)
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())


def test_nothing_to_compute(gpu: Target) -> None:
    g = GraphBuilder("nothing")
    kernel = Kernel(g.build(g.op("relu", g.input("x", (0, 4)))))
    assert build_kernel(kernel, gpu)([np.zeros((0, 4), np.float32)])[0].shape == (0, 4)


def test_refuses_other_forms(gpu: Target, tmp_path: Path) -> None:
    graph = api.optimize(network(), gpu)
    with pytest.raises(BuildError, match="is a library with the runtime `threads`; no other form"):
        compile_graph(graph, gpu, tmp_path / "bundle", form="bundle")
    with pytest.raises(BuildError, match="no other form"):
        compile_graph(graph, gpu, tmp_path / "model.o", runtime="freestanding")
    with pytest.raises(
        BuildError, match=r"a static program is for CPUs, not for `cuda:sm_80`; .*bench FILE.so"
    ):
        api.compile_benchmark(network(), tmp_path / "bench", gpu)


def test_finds_the_gpu_here(gpu: Target) -> None:
    assert gpu.gpu is not None
    assert (gpu.name, gpu.gpu.arch, gpu.description) == ("cuda:sm_80", "sm_80", driver().name)


def test_gpus_that_are_newer_than_all_known_ones_are_named(
    gpu: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_CAPABILITY", "121")
    with pytest.raises(TargetError, match=r"12\.1 \(sm_121\); known are .*compiled for `cuda:sm_90`"):
        gpu_target()


def products() -> Graph:
    """A convolution and a matrix product behind it."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("products")
    taps, matrix = (rng.standard_normal(s).astype(np.float32) / 8 for s in ((16, 8, 1, 1), (16, 8)))
    x = g.op("relu", g.op("conv2d", g.input("image", (1, 8, 4, 4)), g.constant(taps), name="first"))
    x = g.op("reduce_mean", x, axes=(2, 3), keepdims=False)
    return g.build(g.op("matmul", x, g.constant(matrix), name="second"))


def products_run(library: Path) -> tuple[Array, Array]:
    """What the library and the reference make of the same input."""
    x = np.random.default_rng(1).standard_normal((1, 8, 4, 4)).astype(np.float32)
    return load(library)(x)[0], evaluate(products(), [x])[0]


def test_tf32_within_a_tolerance(gpu: Target, tmp_path: Path) -> None:
    """The kernels are those that tuning for this precision sees, layouts included."""
    done = api.compile(products(), tmp_path / "m.so", gpu, precision="tf32")
    assert done.precision.startswith("precision tf32: 2 of 2 products in tf32; error of ")
    tuned = distinct_kernels(api.optimize(products(), gpu, precision="tf32"))
    assert {k.kernel.key for k in done.report.program.kernels} == tuned.keys()
    found, expected = products_run(tmp_path / "m.so")
    assert 0 < np.abs(found - expected).max() < 1e-3


@pytest.mark.slow
def test_tf32_is_taken_back_where_it_is_too_coarse(gpu: Target, tmp_path: Path) -> None:
    done = api.compile(products(), tmp_path / "m.so", gpu, precision="tf32", tolerance=0.0)
    said = "precision tf32: 0 of 2 products in tf32; 2 kernels kept in float32 for accuracy (first, second)"
    assert done.precision.startswith(said)
    np.testing.assert_allclose(*products_run(tmp_path / "m.so"), **TOLERANCE)
