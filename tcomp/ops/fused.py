"""A kernel: a group of operators that runs as one loop program, made by the fusion pass."""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.errors import TypeRuleError
from tcomp.relay.attributes import graph
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Attrs, Graph, Node, Value
from tcomp.relay.op import OPS, REQUIRED, Cost, FusionKind, Op, Sample, declare
from tcomp.relay.types import Array, TensorType


def _infer(types: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    body = graph(attrs, "body")
    if len(types) != len(body.inputs):
        raise TypeRuleError(f"`fused` has {len(types)} operands, its body takes {len(body.inputs)}")
    for at, (given, wanted) in enumerate(zip(types, body.inputs, strict=True)):
        if given != wanted.type:
            raise TypeRuleError(f"`fused` operand {at} is {given}, its body takes {wanted.type}")
    return [v.type for v in body.outputs]


def _evaluate(arrays: Sequence[Array], attrs: Attrs) -> list[Array]:
    return list(evaluate(graph(attrs, "body"), arrays))


def _cost(inputs: Sequence[TensorType], attrs: Attrs, outputs: Sequence[TensorType]) -> Cost:
    flops = 0
    for node in graph(attrs, "body").nodes:
        operands, results = ([v.type for v in values] for values in (node.inputs, node.outputs))
        flops += OPS[node.op].cost_of(operands, node.attrs, results).flops
    return Cost(flops, sum(t.nbytes for t in (*inputs, *outputs)))


def _sample() -> Sample:
    square, row = TensorType((3, 4)), TensorType((4,))
    x, y, total, result = Value(square, "x"), Value(row, "y"), Value(square), Value(square)
    nodes = (Node("add", (x, y), {}, (total,)), Node("relu", (total,), {}, (result,)))
    return Sample((square, row), {"body": Graph((x, y), nodes, (result,))})


declare(
    Op(
        name="fused",
        infer=_infer,
        evaluate=_evaluate,
        compute=None,
        kind=FusionKind.OPAQUE,
        attrs={"body": REQUIRED},
        arity=(0, None),
        cost=_cost,
        samples=(_sample(),),
    )
)
