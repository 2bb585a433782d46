"""Damage done to files, reproducibly."""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUMBERS = (0, 1, -1, 2, 7, 64, 255, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
OPERATORS = (
    "ArgMax", "Attention", "AveragePool", "Cast", "Clip", "Concat", "ConstantOfShape", "Conv",
    "ConvTranspose", "CumSum", "DepthToSpace", "Einsum", "Expand", "Gather", "GatherND", "Gemm",
    "GroupNormalization", "If", "LRN", "LayerNormalization", "MatMul", "MaxPool", "Mod", "OneHot", "Pad",
    "QuantizeLinear", "Range", "ReduceSum", "Reshape", "Resize", "ScatterND", "Slice", "Softmax", "Split",
    "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "No\nsuch",
)  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with up to 16 bits flipped, bytes overwritten, inserted, deleted or repeated, or cut short."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not content:
            break
        at, length = rng.randrange(len(content)), rng.randrange(1, 9)
        kind = rng.randrange(6)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at] = rng.randrange(256)
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = rng.randbytes(length)
        elif kind == 4:
            content[at : at + length] = content[-length:]
        elif rng.random() < 0.3:
            del content[at:]
    return bytes(content)


def small_model() -> onnx.ModelProto:
    """Convolution, pooling, resizing, movement, matmul and softmax: x is [batch, 2, 4, 4]."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    def integers(name: str, *values: int) -> TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "b0", "b0", "b0", "ones"], ["n"], "norm"),
        node("Relu", ["n"], ["r"], "relu"),
        node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["p", "", "scales"], ["z"], "resize", mode="linear"),
        node("Slice", ["z", "zero", "three", "two"], ["s"], "slice"),
        node("Transpose", ["s"], ["t"], "transpose", perm=[0, 2, 3, 1]),
        node("Reshape", ["t", "shape"], ["f"], "reshape"),
        node("MatMul", ["f", "w1"], ["m"], "matmul"),
        node("Split", ["m"], ["s1", "s2"], "split", axis=1, num_outputs=2),
        node("Concat", ["s2", "s1"], ["o"], "concat", axis=1),
        node("Gather", ["o", "order"], ["g"], "gather", axis=1),
        node("ReduceMean", ["g", "last"], ["a"], "mean", keepdims=1),
        node("Sub", ["g", "a"], ["d"], "sub"),
        node("Softmax", ["d"], ["y"], "softmax", axis=-1),
    ]
    constants = [
        weight("w0", 3, 2, 3, 3), weight("b0", 3), numpy_helper.from_array(np.ones(3, np.float32), "ones"),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"), weight("w1", 36, 8),
        integers("zero", 0), integers("two", 2), integers("three", 3), integers("shape", 0, -1),
        integers("order", 0, 2, 4, 6, -1), integers("last", -1),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 4, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def altered(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """A copy that parses, but with some operators, operands, attributes, shapes, types or values changed."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    names = [t.name for t in graph.initializer] + ["x", "r", "p", "y", "", "nowhere"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
        dims = graph.input[0].type.tensor_type.shape.dim
        kind = rng.randrange(10)
        if kind == 0 and node.attribute:
            _alter_attribute(rng.choice(node.attribute), rng)
        elif kind == 1 and node.attribute:
            del node.attribute[rng.randrange(len(node.attribute))]
        elif kind == 2:
            node.op_type = rng.choice(OPERATORS)
        elif kind == 3:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        elif kind == 4:
            node.input.append(rng.choice(names))
        elif kind == 5:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
        elif kind == 6:
            tensor.data_type = rng.randrange(26)
        elif kind == 7:
            tensor.raw_data = damaged(tensor.raw_data, rng)
        elif kind == 8:
            dims[rng.randrange(len(dims))].dim_value = rng.choice(NUMBERS)
        else:
            model.opset_import[0].version = rng.choice((1, 7, 9, 11, 13, 17, 21, 99, -1))
    return model


def _alter_attribute(attribute: onnx.AttributeProto, rng: random.Random) -> None:
    if attribute.type == attribute.INT:
        attribute.i = rng.choice(NUMBERS)
    elif attribute.type == attribute.INTS:
        attribute.ints[:] = [*attribute.ints[:-1], *rng.choices(NUMBERS, k=rng.randrange(3))]
    elif attribute.type == attribute.STRING:
        attribute.s = rng.choice((b"", b"cubic", b"\xff\xfe", b"a\nb"))
