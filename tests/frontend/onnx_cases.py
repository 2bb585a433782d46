"""Which of ONNX's node tests apply to tcomp, as data."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import onnx

PASSING = 1480
"""At least so many node tests pass; fewer means that the loader or the exclusions broke."""

PARAMETERS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "CenterCropPad": (1,), "ConstantOfShape": (0,), "CumSum": (1,), "Dropout": (1, 2),
    "MaxUnpool": (2,),
    "Expand": (1,), "If": (0,), "OneHot": (1,), "Pad": (1, 2, 3), "Range": (0, 1, 2), "ReduceL1": (1,),
    "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceMax": (1,), "ReduceMean": (1,),
    "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,), "Reshape": (1,),
    "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,),
    "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip
"""Operands that must be known at compile time: operator -> positions. The node tests pass them as inputs;
the tests fix these inputs to their values."""

_SEQUENTIAL = "runs a subgraph or a recurrence"
_DATA_DEPENDENT = "its output shape depends on the data"
_NOT_TENSORS = "works on strings, sequences or optionals"
_OUTSIDE = "outside the operator set"

EXCLUDED_OPERATORS: dict[str, str] = {
    **dict.fromkeys(("GRU", "LSTM", "RNN", "Loop", "Scan", "LinearAttention"), _SEQUENTIAL),
    **dict.fromkeys(("Compress", "NonMaxSuppression", "NonZero", "Unique"), _DATA_DEPENDENT),
    **dict.fromkeys(
        ("ImageDecoder", "LabelEncoder", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch",
         "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
        _NOT_TENSORS,
    ),
    **dict.fromkeys(("Adagrad", "Adam", "Momentum", "Bernoulli", "RandomUniformLike"), "training"),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix", "DFT", "STFT"),
                    "signal processing"),
    **dict.fromkeys(("ArrayFeatureExtractor", "Binarizer", "TreeEnsemble"), "classical machine learning"),
    **dict.fromkeys(("BitCast", "Col2Im", "CumProd", "DeformConv", "Det", "GridSample", "RoiAlign",
                     "TensorScatter"), _OUTSIDE),
}  # fmt: skip

_COMPUTED = "a parameter is computed from an input"
EXCLUDED_TESTS: dict[str, str] = {
    "test_batchnorm_*_training_mode": "training",
    "test_training_dropout*": "training",
    "test_not_[234]d": "opset 1",
    "test_*window*_expanded": _COMPUTED,
    "test_center_crop_pad_*_expanded": _COMPUTED,
    "test_affine_grid_*_expanded": _COMPUTED,
}
"""Patterns of test names -> reason."""

_TENSOR_TYPES = {
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE,
    onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64,
    onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64,
    onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2,
}  # fmt: skip


def reason_to_exclude(case: Any) -> str | None:
    """Why a node test does not apply, or None."""
    graph = case.model.graph
    for value in (*graph.input, *graph.output):
        if value.type.WhichOneof("value") != "tensor_type":
            return _NOT_TENSORS
        if value.type.tensor_type.elem_type not in _TENSOR_TYPES:
            return "an element type that tcomp has no tensors of"
    for node in graph.node:
        if node.op_type in EXCLUDED_OPERATORS:
            return EXCLUDED_OPERATORS[node.op_type]
    return next((why for pattern, why in EXCLUDED_TESTS.items() if fnmatch(case.name, pattern)), None)
