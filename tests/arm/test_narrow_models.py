"""Models in few bits on ARM, those that ONNX Runtime quantizes among them, beside ONNX Runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from pictures import picture_of
from shared_folders import SharedFolder
from test_emulated import run, tools
from zoo import MODELS, model_path, resized

import tcomp
from preprocessing import line_of_text
from quantize_models import quantize
from tcomp.api import import_onnx, load_model, optimize
from tcomp.codegen.artifact import compile_graph
from tcomp.relay.graph import Constant, Graph, Value
from tcomp.relay.op import OPS
from tcomp.relay.types import Array
from tcomp.rounding import relative_error
from tcomp.target.parse import parse_target
from tcomp.tensor.kernel import Kernel
from tcomp.transform.lower_precision import is_lowered, product_kernels
from tcomp.verification import OnnxReference

SHAPE = (1, 3, 112, 112)
"""A quarter of the pixels that the models were made for: emulated, each takes long."""


def session(path: Path) -> onnxruntime.InferenceSession:
    """Without optimizations: those multiply int8 with saturation on CPUs without VNNI."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options)


def in_double(graph: Graph, image: Array) -> Array:
    """The output of a graph whose float32 operators compute in float64."""

    def wide(array: Array) -> Array:
        return array.astype(np.float64) if array.dtype == np.float32 else array

    values: dict[Value, Array] = {graph.inputs[0]: wide(image)}
    for node in graph.nodes:
        attrs = {k: "float64" if v == "float32" else v for k, v in node.attrs.items()}
        operands = [wide(v.data) if isinstance(v, Constant) else values[v] for v in node.inputs]
        values.update(zip(node.outputs, OPS[node.op].evaluate(operands, attrs), strict=True))
    return values[graph.outputs[0]]


def quantized(model: str, path: Path, shared_folder: SharedFolder) -> None:
    """Write a model in 8 bits, which ONNX Runtime makes once, to `path`."""

    def make(folder: Path) -> None:
        quantize(resized(model, SHAPE, folder), folder / "quantized.onnx")

    shutil.copy(shared_folder(f"quantized-{model}", make) / "quantized.onnx", path)


def layers_apart(path: Path, image: Array) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A quantized model whose tensors between layers are inputs and outputs, and these by ONNX Runtime.

    What is quantized to `x` is an output of that name; layers that read it read the input `x_given`.
    """
    model = onnx.load(path)
    made = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    onnx.save(model, path)
    results = session(path).run(made, {model.graph.input[0].name: image})
    arrays = dict(zip(made, results, strict=True))
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            node.input[0] += "_given"
    del model.graph.output[:]
    for name, array in arrays.items():
        dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        for values, of in ((model.graph.output, name), (model.graph.input, f"{name}_given")):
            values.append(onnx.helper.make_tensor_value_info(of, dtype, array.shape))
    return model, arrays


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("cortex-a76", 1e-2), ("neoverse-v1", 2e-2)])
def test_fast_is_near_onnxruntime(name: str, most: float, tmp_path: Path) -> None:
    target = parse_target(name)
    tools(target)
    source = resized("mobilenetv2_100", SHAPE, tmp_path)
    reference = session(source)
    (entry,) = reference.get_inputs()
    image = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    (expected,) = reference.run(None, {entry.name: image})
    graph = optimize(import_onnx(str(source), {entry.name: SHAPE}), target, precision="fast")
    assert all(is_lowered(kernel) for kernel in product_kernels(graph))
    library = tmp_path / "model.so"
    compile_graph(graph, target, library)
    result = run(library, target, [image], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    found = np.frombuffer(result.stdout, np.float32).reshape(expected.shape)
    error = relative_error(found, expected)
    print(f"{name}: {error:.2%} of the outputs' scale")
    assert 0 < error < most


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["ocr_det", "ocr_rec"])
def test_fast_reads_text_as_onnxruntime_does(name: str, tmp_path: Path) -> None:
    """Networks that make much of little: kernels stay in float32 until the estimate is tolerable."""
    target = parse_target("cortex-a76")
    tools(target)
    (shape,) = MODELS[name].input_shapes.values()
    image = line_of_text(picture_of("Tensor 2026", shape[2] if name == "ocr_rec" else 40), shape[3])
    page = np.full(shape, image.max(), np.float32)
    page[:, :, : image.shape[2]] = image
    model = load_model(model_path(name), MODELS[name].input_shapes)
    compiled = tcomp.compile(model, tmp_path / "m.so", target, precision="fast", inputs={"x": page})
    result = run(tmp_path / "m.so", target, [page], tmp_path, seconds=600)
    assert (result.returncode, result.stderr) == (0, b"")
    (expected,) = OnnxReference(model_path(name)).run({"x": page})
    error = relative_error(np.frombuffer(result.stdout, np.float32).reshape(expected.shape), expected)
    print(f"{compiled.precision}; {error:.2%} under qemu")
    assert np.abs(expected).max() > 0.9, "it sees text"
    assert 0 < error < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("resnet18", "cortex-a76"),
        ("resnet18", "neoverse-v1"),
        pytest.param("mobilenetv2_100", "cortex-a76", marks=pytest.mark.zoo),
        pytest.param("mobilenetv2_100", "neoverse-v1", marks=pytest.mark.zoo),
    ],
)
def test_int8_layers_equal_onnxruntime(
    model: str, name: str, tmp_path: Path, shared_folder: SharedFolder
) -> None:
    """Each layer from the same numbers: by one step where a sum lies between two, and hardly ever there."""
    target = parse_target(name)
    tools(target)
    image = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    quantized(model, tmp_path / "quantized.onnx", shared_folder)
    apart, arrays = layers_apart(tmp_path / "quantized.onnx", image)
    onnx.save(apart, tmp_path / "apart.onnx")
    graph = import_onnx(str(tmp_path / "apart.onnx"))
    lowered = optimize(graph, target)
    anchors = [k.anchor for k in (Kernel.of(n) for n in lowered.nodes if n.op == "fused") if k.anchor]
    products = [a.inputs[0].dtype for a in anchors if a.op in ("conv2d", "matmul")]
    assert len(products) >= 20
    assert set(products) == {"int8"}
    library = tmp_path / "model.so"
    compile_graph(lowered, target, library)
    given = [arrays.get(v.name.removesuffix("_given"), image) for v in graph.inputs]
    result = run(library, target, given, tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    begin, different = 0, 0
    for value in graph.outputs:
        expected = arrays[value.name]
        found = np.frombuffer(result.stdout, expected.dtype, expected.size, begin).reshape(expected.shape)
        begin += found.nbytes
        steps = np.abs(found.astype(np.int32) - expected)
        assert steps.max() <= 1, value.name
        different += np.count_nonzero(steps)
    assert begin == len(result.stdout)
    print(f"{model}, {name}: {different} of {begin} numbers differ by a step")
    assert different < 1e-5 * begin


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "mobilenetv2_100"])
def test_int8_is_as_near_onnxruntime_as_exact_arithmetic(
    model: str, tmp_path: Path, shared_folder: SharedFolder
) -> None:
    """Outputs are steps of the last quantization. One number of an early layer that is another step becomes
    several of later ones, in ONNX Runtime as here, so that one step more than it is off is allowed."""
    path, target = tmp_path / "quantized.onnx", parse_target("cortex-a76")
    tools(target)
    quantized(model, path, shared_folder)
    reference = session(path)
    (entry,) = reference.get_inputs()
    image = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    (expected,) = reference.run(None, {entry.name: image})
    graph, library = import_onnx(str(path), {entry.name: SHAPE}), tmp_path / "model.so"
    compile_graph(optimize(graph, target), target, library)
    result = run(library, target, [image], tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    found = np.frombuffer(result.stdout, np.float32).reshape(expected.shape)
    step = np.diff(np.unique(expected)).min()
    here, exact = (np.abs(x - expected) / step for x in (found, in_double(graph, image)))
    print(f"{model}: up to {here.max():.1f} steps from ONNX Runtime, which is {exact.max():.1f} from exact")
    assert here.max() <= max(1, exact.max() + 1) + 0.01
    assert found.argmax() == expected.argmax()
