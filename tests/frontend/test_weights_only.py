"""Models whose weights alone are quantized: against ONNX Runtime, and what becomes of the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tcomp.api import compile, import_onnx
from tcomp.errors import UnsupportedError
from tcomp.ops.quantized import packed, packed_weights, unpacked
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import Array
from tcomp.runtime import load
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel
from tcomp.transform.pipeline import optimize

ROWS, DEPTH, COLUMNS = 3, 544, 512
"""Weights of more than 1 MiB in float32: smaller ones become float32 constants."""
RNG = np.random.default_rng(0)
X = RNG.standard_normal((ROWS, DEPTH)).astype(np.float32)


def model(
    path: Path, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], external: bool = False
) -> None:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("rows", DEPTH))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("rows", COLUMNS))],
        tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(made, path, save_as_external_data=external, size_threshold=0, location=f"{path.stem}.data")


def of_bits(path: Path, bits: int, block: int, zeros: bool, bias: bool = False) -> None:
    """MatMulNBits, the last block of which may be cut."""
    blocks = -(-DEPTH // block)
    shape = (COLUMNS, blocks, block * bits // 8)
    tensors = [
        numpy_helper.from_array(RNG.integers(0, 256, shape).astype(np.uint8), "b"),
        numpy_helper.from_array(RNG.uniform(0.01, 0.02, COLUMNS * blocks).astype(np.float32), "scales"),
    ]
    names = ["x", "b", "scales"]
    if zeros or bias:
        names.append("zeros" if zeros else "")
    if zeros:
        count = COLUMNS * -(-blocks * bits // 8)
        tensors.append(numpy_helper.from_array(RNG.integers(0, 256, count).astype(np.uint8), "zeros"))
    if bias:
        names += ["", "bias"]
        tensors.append(numpy_helper.from_array(RNG.standard_normal(COLUMNS).astype(np.float32), "bias"))
    attrs = {"K": DEPTH, "N": COLUMNS, "bits": bits, "block_size": block}
    model(path, [helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attrs)], tensors)


def dequantized(
    path: Path,
    dtype: int,
    axis: int,
    block: int,
    zeros: bool,
    transposed: bool = False,
    external: bool = False,
) -> None:
    """DequantizeLinear before MatMul, or before Gemm with a transposed operand."""
    shape = (COLUMNS, DEPTH) if transposed else (DEPTH, COLUMNS)
    low, high = {
        TensorProto.INT4: (-8, 8), TensorProto.UINT4: (0, 16), TensorProto.INT8: (-128, 128),
        TensorProto.UINT8: (0, 256), TensorProto.FLOAT8E4M3FN: (-16, 17), TensorProto.FLOAT8E5M2: (-4, 5),
    }[dtype]  # fmt: skip
    of_scale = (
        [shape[axis]] if not block else [-(-d // block) if a == axis else d for a, d in enumerate(shape)]
    )

    def numbers(name: str, extents: list[int]) -> onnx.TensorProto:
        return helper.make_tensor(name, dtype, extents, RNG.integers(low, high, extents).reshape(-1))

    scales = RNG.uniform(0.01, 0.02, of_scale).astype(np.float32)
    tensors = [numbers("w", list(shape)), numpy_helper.from_array(scales, "s")]
    tensors += [numbers("z", of_scale)] if zeros else []
    attrs = {"axis": axis, **({"block_size": block} if block else {})}
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", *(["z"] if zeros else [])], ["f"], **attrs)]
    if transposed:
        nodes.append(helper.make_node("Gemm", ["x", "f"], ["y"], transB=1))
    else:
        nodes.append(helper.make_node("MatMul", ["x", "f"], ["y"]))
    model(path, nodes, tensors, external)


CASES = {
    "4 bits": lambda p: of_bits(p, 4, 32, zeros=False),
    "4 bits, zero points, cut block, bias": lambda p: of_bits(p, 4, 128, zeros=True, bias=True),
    "8 bits": lambda p: of_bits(p, 8, 32, zeros=True),
    "int4 in blocks": lambda p: dequantized(p, TensorProto.INT4, 0, 32, zeros=False),
    "uint4 in blocks, transposed": lambda p: dequantized(p, TensorProto.UINT4, 1, 32, True, transposed=True),
    "int8 in blocks": lambda p: dequantized(p, TensorProto.INT8, 0, 136, zeros=True),
    "blocks across outputs": lambda p: dequantized(p, TensorProto.UINT8, 1, 64, zeros=True),
    "int8 by output": lambda p: dequantized(p, TensorProto.INT8, 1, 0, zeros=False),
    "uint8 by output, transposed": lambda p: dequantized(p, TensorProto.UINT8, 0, 0, True, transposed=True),
    "float8 by output": lambda p: dequantized(p, TensorProto.FLOAT8E4M3FN, 1, 0, zeros=False),
    "float8 in blocks": lambda p: dequantized(p, TensorProto.FLOAT8E4M3FN, 0, 32, zeros=False),
    "float8_e5m2 by output, transposed": lambda p: dequantized(
        p, TensorProto.FLOAT8E5M2, 0, 0, zeros=False, transposed=True
    ),
    "int4 by output, external": lambda p: dequantized(p, TensorProto.INT4, 1, 0, zeros=False, external=True),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_stay_packed(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()  # Optimized, it rounds the activations to 8 bits.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": X})
    graph = import_onnx(tmp_path / "m.onnx", {"x": X.shape})
    optimized = optimize(graph, TARGETS["cuda:sm_80" if "float8" in name else "x86-64-v3"])
    (kernel,) = (Kernel.of(n) for n in optimized.nodes if n.op == "fused")
    bits = 8 if "8" in name or "across" in name else 4
    assert kernel.anchor is not None
    assert kernel.anchor.op == "matmul"
    assert f"bits={bits}" in kernel.key
    weights = sum(v.type.nbytes for i, v in enumerate(kernel.body.inputs) if i in kernel.constant_inputs)
    assert weights < 1.4 * DEPTH * COLUMNS * bits / 8
    scale = np.abs(expected).max()
    for found in (evaluate(graph, [X])[0], evaluate(optimized, [X])[0]):
        np.testing.assert_allclose(found, expected, atol=1e-4 * scale)


@pytest.mark.parametrize("rows", [1, ROWS])
def test_compiles_for_the_cpu_here(rows: int, tmp_path: Path) -> None:
    of_bits(tmp_path / "m.onnx", 4, 32, zeros=True)
    graph = import_onnx(tmp_path / "m.onnx", {"x": (rows, DEPTH)})
    done = compile(graph, tmp_path / "m.so")
    assert done.report.program.weights_bytes < 1.4 * DEPTH * COLUMNS / 2
    with load(tmp_path / "m.so") as library:
        (found,) = library(X[:rows])
    np.testing.assert_allclose(found, evaluate(graph, [X[:rows]])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_undone(bits: int) -> None:
    levels = RNG.integers(0, 2**bits, (3, 6)).astype(np.uint8)
    np.testing.assert_array_equal(unpacked(packed(levels, bits), bits), levels)


@pytest.mark.parametrize(
    ("levels", "zero", "expected"),
    [
        (np.array([[-8, 7]], np.int8), 0, (4, 8)),
        (np.array([[0, 15]], np.int8), 3, (4, 3)),
        (np.array([[-8, 8]], np.int8), 0, (8, 128)),
        (np.array([[0, 1, 2]], np.int8), 0, (8, 128)),  # an odd column has no other half
        (np.array([[-1, 1]], np.int8), -20, (8, 108)),
        (np.array([[3, 200]], np.uint8), 7, (8, 7)),
    ],
)
def test_few_levels_take_four_bits(levels: Array, zero: int, expected: tuple[int, int]) -> None:
    data, shift, bits = packed_weights(levels, np.array([[zero]], levels.dtype))
    assert (bits, int(shift)) == expected
    np.testing.assert_array_equal(unpacked(data, bits).astype(int) - shift, levels.astype(int) - zero)


def test_reordered_depths_are_refused(tmp_path: Path) -> None:
    tensors = [
        numpy_helper.from_array(np.zeros((COLUMNS, 17, 16), np.uint8), "b"),
        numpy_helper.from_array(np.zeros(COLUMNS * 17, np.float32), "scales"),
        numpy_helper.from_array(np.zeros(DEPTH, np.int32), "order"),
    ]
    attrs = {"K": DEPTH, "N": COLUMNS, "bits": 4, "block_size": 32}
    names = ["x", "b", "scales", "", "order"]
    model(
        tmp_path / "m.onnx",
        [helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attrs)],
        tensors,
    )
    with pytest.raises(UnsupportedError, match="g_idx orders the depth; quantize the model without"):
        import_onnx(tmp_path / "m.onnx")
