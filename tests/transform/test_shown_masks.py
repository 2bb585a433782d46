"""Masks that choose which scores count, as exporters spell them: what attention makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from test_causal import KEYS, LOWEST, ROWS, Scores, anchor_of

from tcomp import api
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph, Value
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS
from tcomp.tensor.kernel import Kernel

PADDING = (2, 1, 1, KEYS)


class Shown(Scores):
    """Scores of two sentences, of which a mask shows some keys."""

    def __init__(self) -> None:
        super().__init__(batch=2)

    def number(self, value: float) -> Value:
        return self.g.constant(np.float32(value))

    def mask(self, shape: tuple[int, ...] = PADDING) -> Value:
        return self.g.input("mask", shape, "bool")

    def tokens(self) -> Value:
        """`mask[:, None, None, :] == 0` of token masks, spread over all scores."""
        shown = self.g.op("reshape", self.g.input("tokens", (2, KEYS), "int64"), shape=PADDING)
        hidden = self.g.op("equal", shown, self.g.constant(np.int64(0)))
        return self.g.op("broadcast_to", hidden, shape=self.scores.type.shape)

    def bias(self) -> Value:
        return self.g.input("bias", (1, 2, ROWS, KEYS))

    def where(self, *operands: Value) -> Value:
        return self.g.op("where", *operands)

    def add(self, *operands: Value) -> Value:
        return self.g.op("add", *operands)

    def both(self, first: Array) -> Value:
        """A mask and a constant one."""
        return self.g.op("logical_and", self.g.constant(first), self.mask())

    def guarded(self, masked: Value, zeros: tuple[int, ...] = ()) -> Graph:
        """Weights that are no numbers are zeros, of such a shape."""
        weights = self.g.op("softmax", masked, axis=3)
        none = self.g.constant(np.zeros(zeros, np.float32))
        weights = self.where(self.g.op("is_nan", weights), none, weights)
        return self.g.build(self.g.op("matmul", weights, self.value))


@dataclass(frozen=True)
class Case:
    spelled: Callable[[Shown], Graph]
    dtype: str = "bool"
    shape: tuple[int, ...] = PADDING
    hidden: float = -inf
    zero_nan: bool = False
    causal: int = 0
    tolerance: float = 1e-5


WIDE = (2, 2, ROWS, KEYS)
TRIANGLE = np.tri(ROWS, KEYS, 3, dtype=np.bool_)
CASES = {
    "choice": Case(lambda s: s.graph(s.where(s.mask(), s.scores, s.number(-inf)))),
    "choice by tokens": Case(lambda s: s.graph(s.where(s.tokens(), s.number(-1e4), s.scores)), hidden=-1e4),
    "any number": Case(lambda s: s.graph(s.where(s.mask(), s.scores, s.number(0.5))), hidden=0.5),
    "rows differ": Case(
        lambda s: s.graph(s.where(s.mask((ROWS, KEYS)), s.scores, s.number(LOWEST))),
        shape=(ROWS, KEYS),
        hidden=LOWEST,
    ),
    "added choice": Case(
        lambda s: s.graph(s.add(s.scores, s.where(s.mask(), s.number(0), s.number(LOWEST)))), dtype="float32"
    ),
    "added choice, hidden ones first": Case(
        lambda s: s.graph(s.add(s.where(s.mask(), s.number(-inf), s.number(0)), s.scores)), dtype="float32"
    ),
    "added choice of a number that is no end": Case(
        lambda s: s.graph(s.add(s.scores, s.where(s.mask(), s.number(0), s.number(-1e4)))),
        dtype="float32",
        tolerance=2e-3,  # Scores of the second sentence are rounded to 1e-3.
    ),
    "guarded": Case(
        lambda s: s.guarded(s.add(s.scores, s.where(s.mask(), s.number(0), s.number(-inf)))),
        dtype="float32",
        zero_nan=True,
    ),
    "guarded, no mask": Case(lambda s: s.guarded(s.scores), dtype="", zero_nan=True),
    "guarded, past and padding": Case(
        lambda s: s.guarded(s.add(s.scores, s.where(s.both(TRIANGLE), s.number(0), s.number(-inf)))),
        zero_nan=True,
        causal=4,
    ),
    "lowest, past and padding": Case(  # A row that sees no key weighs all alike.
        lambda s: s.graph(s.add(s.scores, s.where(s.both(TRIANGLE), s.number(0), s.number(LOWEST)))),
        shape=(2, 1, ROWS, KEYS),
        hidden=LOWEST,
    ),
    "padding and all": Case(
        lambda s: s.graph(s.where(s.both(np.ones((1, 1, ROWS, 1), np.bool_)), s.scores, s.number(-inf)))
    ),
    "two that are added": Case(
        lambda s: s.graph(s.add(s.add(s.scores, s.bias()), s.g.input("mask", PADDING))),
        dtype="float32",
        shape=WIDE,
    ),
    "choice of biased scores": Case(
        lambda s: s.graph(s.where(s.mask(), s.add(s.scores, s.bias()), s.number(-inf))),
        dtype="float32",
        shape=WIDE,
    ),
    "biased choice": Case(
        lambda s: s.graph(s.add(s.where(s.mask(), s.scores, s.number(LOWEST)), s.bias())),
        dtype="float32",
        shape=WIDE,
    ),
}


def arrays_of(graph: Graph) -> list[Array]:
    """The first sentence sees about half, the second nothing."""
    rng = np.random.default_rng(0)
    arrays: list[Array] = []
    for value in graph.inputs:
        shape = value.type.static_shape
        shown = rng.random(shape) < 0.5
        if shape[0] == 2 and value.dtype != "float32":
            shown[1] = False
        floats = rng.standard_normal(shape).astype(np.float32)
        arrays.append(floats if value.dtype == "float32" else shown.astype(value.dtype))
    return arrays


@pytest.mark.parametrize("name", CASES)
def test_forms(name: str) -> None:
    case = CASES[name]
    graph = case.spelled(Shown())
    optimized = api.optimize(graph, TARGETS["x86-64-v3"])
    anchor = anchor_of(optimized)
    if case.dtype:
        assert (anchor.inputs[3].dtype, anchor.inputs[3].shape) == (case.dtype, case.shape)
    else:
        assert len(anchor.inputs) == 3
    attrs = [anchor.attrs[n] for n in ("hidden", "zero_nan", "causal")]
    assert attrs == [case.hidden, case.zero_nan, case.causal]
    arrays = arrays_of(graph)
    with np.errstate(invalid="ignore"):
        (expected,), (found,) = evaluate(graph, arrays), evaluate(optimized, arrays)
    np.testing.assert_allclose(found, expected, rtol=case.tolerance, atol=case.tolerance)


UNLIKE: dict[str, Callable[[Shown], Graph]] = {
    # Beside a bias, a hidden score would be a sum with what it was.
    "no end": lambda s: s.graph(s.add(s.where(s.mask(), s.scores, s.number(-1e4)), s.bias())),
    "several numbers": lambda s: s.graph(s.where(s.mask(), s.scores, s.g.constant(
        np.linspace(-9, -8, KEYS, dtype=np.float32)))),
    "zeros elsewhere": lambda s: s.g.build(s.g.op("matmul", s.where(
        s.mask(), s.g.op("softmax", s.scores, axis=3), s.number(0)), s.value)),
    "weights of more axes": lambda s: s.guarded(s.scores, (1,) * 5),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_what_is_no_mask_stays(name: str) -> None:
    graph = UNLIKE[name](Shown())
    optimized = api.optimize(graph, TARGETS["x86-64-v3"])
    assert not any("attention" in Kernel.of(node).key for node in optimized.nodes if node.op == "fused")
    arrays = arrays_of(graph)
    np.testing.assert_allclose(
        evaluate(optimized, arrays)[0], evaluate(graph, arrays)[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", ["torchscript", "dynamo"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 12), (2, 1, 10, 12)])
def test_exports_of_pytorch(style: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")

    class Attention(torch.nn.Module):
        def forward(self, q: object, k: object, v: object, mask: object) -> object:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((2, 3, n, 8)).astype(np.float32) for n in (10, 12, 12)]
    mask = rng.random(shape) < 0.5
    mask[1] = False
    arrays, path = [*rows, mask], tmp_path / "attention.onnx"
    options = {"dynamo": True} if style == "dynamo" else {"dynamo": False, "opset_version": 17}
    operands = tuple(map(torch.from_numpy, arrays))
    torch.onnx.export(Attention().eval(), operands, str(path), input_names=list("qkvm"), **options)
    graph = api.optimize(api.load_model(path), TARGETS["x86-64-v3"])
    anchor = anchor_of(graph)
    assert (anchor.op, anchor.attrs["zero_nan"]) == ("attention", True)
    (expected,) = onnxruntime.InferenceSession(path).run(None, dict(zip("qkvm", arrays, strict=True)))
    np.testing.assert_allclose(evaluate(graph, arrays)[0], np.asarray(expected), rtol=1e-5, atol=1e-6)
