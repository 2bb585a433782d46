"""Tensor expressions of a kernel's body."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tcomp.errors import UnsupportedError
from tcomp.relay.graph import Constant, Node, Value
from tcomp.relay.op import OPS
from tcomp.relay.types import TensorType
from tcomp.tensor.kernel import Kernel
from tcomp.tvm_api import Tensor, te, tirx

AnchorCompute = Callable[[Node, Sequence[Tensor]], Sequence[Tensor]]


def placeholders(kernel: Kernel, packed: Mapping[int, TensorType] | None = None) -> list[Tensor]:
    """A placeholder for each kernel input, of its packed type where it has one."""
    types = {i: v.type for i, v in enumerate(kernel.body.inputs)} | dict(packed or {})
    return [te.placeholder(t.static_shape, t.dtype, name=f"input{i}") for i, t in types.items()]


def lower_body(
    kernel: Kernel,
    inputs: Sequence[Tensor],
    anchor: AnchorCompute | None = None,
    more: Collection[Node] = (),
) -> list[Tensor]:
    """The output tensors of `kernel` from its `inputs`; `anchor` replaces the compute of its anchors, and of
    `more` nodes.

    Raises UnsupportedError for an operator without a tensor expression.
    """
    tensors: dict[Value, Any] = dict(zip(kernel.body.inputs, inputs, strict=True))
    for node in kernel.body.nodes:
        operands = [_operand(v, tensors) for v in node.inputs]
        if anchor is not None and (node in kernel.anchors or node in more):
            results = anchor(node, operands)
        else:
            compute = OPS[node.op].compute
            if compute is None:
                raise UnsupportedError(f"{node.where} has no tensor expression; a pass must remove it before")
            results = compute(operands, node.attrs, [v.type for v in node.outputs])
        tensors.update(zip(node.outputs, results, strict=True))
    return [tensors[v] for v in kernel.body.outputs]


def _operand(value: Value, tensors: Mapping[Value, Any]) -> Tensor:
    if isinstance(value, Constant) and value not in tensors:
        scalar = value.data.reshape(()).item()
        constant = tirx.const(scalar, value.dtype)
        return te.compute(value.type.static_shape, lambda *indices: constant, name="scalar")  # pyright: ignore
    return tensors[value]
