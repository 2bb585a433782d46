"""ONNX's `Attention`: numbers of its reference, and that kernels of attention come of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tcomp.api import optimize
from tcomp.errors import TcompError
from tcomp.frontend.onnx import import_onnx
from tcomp.relay.attributes import graph as body_of
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Node
from tcomp.target.target import TARGETS

SIZE = 8


def model(
    heads: int = 4,
    kv_heads: int = 4,
    rows: int | str = 5,
    keys: int | str = 5,
    past: int | str | None = None,
    mask: tuple[int, ...] = (),
    mask_type: int = TensorProto.FLOAT,
    merged: bool = False,
    **attrs: Any,
) -> onnx.ModelProto:
    """One node; `merged` are operands of three axes."""

    def operand(name: str, count: int, extent: int | str) -> onnx.ValueInfoProto:
        shape = (2, extent, count * SIZE) if merged else (2, count, extent, SIZE)
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs = [operand("q", heads, rows), operand("k", kv_heads, keys), operand("v", kv_heads, keys)]
    names, outputs = ["q", "k", "v"], ["y"]
    names += ["mask" if mask else ""] if mask or past is not None else []
    if mask:
        inputs.append(helper.make_tensor_value_info("mask", mask_type, mask))
    if past is not None:
        shape = (2, kv_heads, past, SIZE)
        inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("pk", "pv")]
        names, outputs = [*names, "pk", "pv"], [*outputs, "key", "value"]
    if merged:
        attrs |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    node = helper.make_node("Attention", names, outputs, **attrs)
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    graph = helper.make_graph([node], "attention", inputs, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def attention_of(graph: Graph) -> Node:
    bodies = [
        body_of(n.attrs, "body") for n in optimize(graph, TARGETS["x86-64-v3"]).nodes if n.op == "fused"
    ]
    (node,) = (n for body in bodies for n in body.nodes if n.op == "attention")
    return node


CASES: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {
    # the model, `causal`, the shape of keys
    "heads": ({}, 0, (2, 4, 5, SIZE)),
    "causal": ({"is_causal": 1}, 1, (2, 4, 5, SIZE)),
    "more keys": ({"is_causal": 1, "keys": 9}, 1, (2, 4, 9, SIZE)),
    "merged": ({"is_causal": 1, "merged": True}, 1, (2, 4, 5, SIZE)),
    "past": ({"is_causal": 1, "past": 3}, 4, (2, 4, 8, SIZE)),
    "groups": ({"is_causal": 1, "kv_heads": 2}, 1, (2, 2, 1, 5, SIZE)),
    "merged groups": ({"is_causal": 1, "kv_heads": 2, "merged": True}, 1, (2, 2, 1, 5, SIZE)),
    "one head of keys, mask of heads": ({"kv_heads": 1, "mask": (2, 4, 5, 5)}, 0, (2, 1, 1, 5, SIZE)),
    "groups, past, mask": (
        {"kv_heads": 2, "past": 3, "mask": (1, 1, 5, 8), "is_causal": 1, "scale": 0.2}, 4, (2, 2, 1, 8, SIZE),
    ),
    "choice of keys": (
        {"mask": (2, 1, 5, 5), "mask_type": TensorProto.BOOL, "is_causal": 1, "merged": True},
        1, (2, 4, 5, SIZE),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_numbers_and_kernels(name: str) -> None:
    arguments, causal, keys = CASES[name]
    proto = model(**arguments)
    rng = np.random.default_rng(0)
    graph = import_onnx(proto)
    arrays = {v.name: rng.standard_normal(v.type.static_shape).astype(np.float32) for v in graph.inputs}
    if arguments.get("mask_type") == TensorProto.BOOL:
        arrays["mask"] = arrays["mask"] > 0  # Some queries see no key.
    wanted = ReferenceEvaluator(proto).run(None, arrays)
    for found, expected in zip(evaluate(graph, arrays), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    node = attention_of(graph)
    assert (node.attrs["causal"], node.inputs[1].shape) == (causal, keys)


def test_only_queries_that_see_no_key_are_zeros() -> None:
    """What is no number stays that where a key is seen."""
    proto = model(mask=(5, 5), mask_type=TensorProto.BOOL)
    rng = np.random.default_rng(0)
    graph = import_onnx(proto)
    arrays = {v.name: rng.standard_normal(v.type.static_shape).astype(np.float32) for v in graph.inputs}
    arrays["mask"] = np.tri(5, 5, -1, dtype=np.bool_)
    arrays["q"][0, 0, :2] = np.nan
    (wanted,) = ReferenceEvaluator(proto).run(None, arrays)
    (found,) = evaluate(graph, arrays)
    assert not found[:, :, 0].any()
    assert np.isnan(found[0, 0, 1]).all()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_lengths_known_later() -> None:
    """Extents are symbols until shapes are given, the limit of causal attention too."""
    graph = import_onnx(model(rows="new", keys="new", past="past", is_causal=1))
    assert str(graph.outputs[0].shape[2]) == "new"
    shapes = {"q": (2, 4, 1, SIZE), "pk": (2, 4, 6, SIZE), "k": (2, 4, 1, SIZE)}
    proto = model(rows="new", keys="new", past="past", is_causal=1)
    assert attention_of(import_onnx(proto, shapes)).attrs["causal"] == 7


def test_what_is_more_than_attention_is_made_of_simpler_operators() -> None:
    graph = import_onnx(model(softcap=2.0, is_causal=1))
    assert "attention" not in [n.op for n in graph.nodes]
    assert "tanh" in [n.op for n in graph.nodes]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"heads": 4, "kv_heads": 3}, "4 heads of queries do not share 3"),
        ({"rows": "n", "keys": "m", "mask": (1, 1, 1, 5), "is_causal": 1}, "static shapes"),
    ],
)
def test_what_cannot_be(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TcompError, match=complaint):
        import_onnx(model(**arguments))
