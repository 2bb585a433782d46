"""What a converter works with: the ONNX node it translates and the graph under construction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.symbolic import as_dims, evaluate_symbolic, is_number, object_array
from tcomp.relay.builder import make_node
from tcomp.relay.dims import Dim, DimExpr
from tcomp.relay.evaluate import evaluate_node
from tcomp.relay.graph import Attr, Constant, Node, Value
from tcomp.relay.types import Array, numpy_dtype

SHAPE_REMEDY = "give the model static shapes, as in --input-shape NAME:1,3,224,224"
Attribute = Any
Branch = Callable[[onnx.GraphProto], "list[Value]"]


@dataclass(frozen=True)
class OnnxNode:
    """One ONNX node: its operands as Relay values (None where an optional one is left out)."""

    op_type: str
    name: str
    opset: int
    inputs: tuple[Value | None, ...]
    attrs: Mapping[str, Attribute]
    output_names: tuple[str, ...]

    def input(self, index: int) -> Value:
        """Operand `index`, which must be there."""
        value = self.optional(index)
        if value is None:
            raise ModelError(f"operand {index} is missing")
        return value

    def optional(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def all_inputs(self) -> list[Value]:
        """The operands of a variadic operator; none may be left out."""
        return [self.input(i) for i in range(len(self.inputs))]

    def uses_output(self, index: int) -> bool:
        return index < len(self.output_names) and self.output_names[index] != ""

    def integer(self, name: str, default: int | None = None) -> int:
        return int(self._attribute(name, default))

    def real(self, name: str, default: float | None = None) -> float:
        return float(self._attribute(name, default))

    def text(self, name: str, default: str | None = None) -> str:
        return str(self._attribute(name, default))

    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        return tuple(int(i) for i in self._attribute(name, default))

    def optional_integers(self, name: str) -> tuple[int, ...] | None:
        return self.integers(name) if name in self.attrs else None

    def _attribute(self, name: str, default: Any) -> Any:
        value = self.attrs.get(name, default)
        if value is None:
            raise ModelError(f"attribute `{name}` is missing")
        return value


class Context:
    """Collects Relay nodes; evaluates at once what is constant and tracks shape arithmetic.

    ctx.op("add", x, ctx.constant(1.0, x.dtype))
    """

    def __init__(self, convert_branch: Branch | None = None) -> None:
        self.nodes: list[Node] = []
        self.node_name = ""
        """ONNX node being converted; the Relay nodes made for it carry its name."""
        self._dims: dict[Value, Array] = {}
        self._convert_branch = convert_branch

    # Building

    def op(self, op: str, *inputs: Value, **attrs: Attr) -> Value:
        """Apply a single-output operator; constant operands give a Constant."""
        (value,) = self.ops(op, *inputs, **attrs)
        return value

    def ops(self, op: str, *inputs: Value, **attrs: Attr) -> tuple[Value, ...]:
        """Apply an operator and return all its outputs."""
        node = make_node(op, inputs, attrs, self.node_name)
        constants = self._fold(node) or self._settle(node)
        if constants is not None:
            return constants
        self.nodes.append(node)
        return node.outputs

    def later(self, op: str, *inputs: Value, **attrs: Attr) -> Value:
        """Apply a single-output operator that a pass looks for: constant operands are not evaluated."""
        node = make_node(op, inputs, attrs, self.node_name)
        self.nodes.append(node)
        return node.output

    def constant(self, data: npt.ArrayLike, dtype: str | None = None) -> Constant:
        """A constant; Python numbers need a `dtype`."""
        return Constant.of(np.asarray(data, dtype=None if dtype is None else numpy_dtype(dtype)))

    def inline(self, graph: onnx.GraphProto) -> list[Value]:
        """The outputs of a subgraph (a branch of If) converted in place."""
        if self._convert_branch is None:
            raise UnsupportedError("subgraphs cannot be converted here")
        return self._convert_branch(graph)

    # Frequent small expressions

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        return x if tuple(shape) == x.shape else self.op("reshape", x, shape=tuple(shape))

    def transpose(self, x: Value, axes: Sequence[int]) -> Value:
        axes = tuple(axes)
        return x if axes == tuple(range(len(axes))) else self.op("transpose", x, axes=axes)

    def cast(self, x: Value, dtype: str) -> Value:
        return x if x.dtype == dtype else self.op("cast", x, dtype=dtype)

    def broadcast_to(self, x: Value, shape: Sequence[Dim]) -> Value:
        return x if tuple(shape) == x.shape else self.op("broadcast_to", x, shape=tuple(shape))

    # Known values

    def array(self, value: Value, what: str) -> Array:
        """The data of a constant.

        Raises UnsupportedError when it is only known at run time.
        """
        if not isinstance(value, Constant):
            raise UnsupportedError(f"its {what} must be known at compile time; {SHAPE_REMEDY}")
        return value.data

    def dims(self, value: Value, what: str) -> tuple[Dim, ...]:
        """The elements of an integer tensor, each a number or a symbolic dimension."""
        if isinstance(value, Constant):
            return tuple(int(d) for d in value.data.reshape(-1))
        known = self._dims.get(value)
        if known is None:
            raise UnsupportedError(f"its {what} must be known at compile time; {SHAPE_REMEDY}")
        return as_dims(known)

    def integers(self, value: Value, what: str) -> tuple[int, ...]:
        """The elements of an integer tensor, all of them numbers."""
        dims = self.dims(value, what)
        numbers = tuple(d for d in dims if isinstance(d, int))
        if len(numbers) != len(dims):
            symbolic = next(d for d in dims if isinstance(d, DimExpr))
            raise UnsupportedError(f"its {what} depends on the dimension `{symbolic}`; {SHAPE_REMEDY}")
        return numbers

    def shape_of(self, x: Value) -> Value:
        """The shape of `x` as an int64 tensor: a Constant, or a value whose symbolic elements are known."""
        if x.type.is_static:
            return self.constant(np.array(x.shape, np.int64))
        shape = self.op("shape_of", x)
        self._dims[shape] = object_array(x.shape)
        return shape

    def _fold(self, node: Node) -> tuple[Value, ...] | None:
        if not node.inputs or not all(isinstance(v, Constant) for v in node.inputs):
            return None
        if not all(v.type.is_static for v in node.outputs):
            return None
        results = evaluate_node(node, [v.data for v in node.inputs if isinstance(v, Constant)])
        return tuple(Constant.of(array) for array in results)

    def _settle(self, node: Node) -> tuple[Value, ...] | None:
        """Follow shape arithmetic through `node`: a Constant if every element of the result is a number.

        A result with symbolic elements is remembered for `dims` and None returned.
        """
        if not any(v in self._dims for v in node.inputs):
            return None
        operands = [v.data if isinstance(v, Constant) else self._dims.get(v) for v in node.inputs]
        known = [a for a in operands if a is not None]
        result = evaluate_symbolic(node.op, known, node.attrs) if len(known) == len(operands) else None
        if result is None:
            return None
        if is_number(result):
            return (self.constant(result.astype(numpy_dtype(node.output.dtype))),)
        self._dims[node.output] = result
        return None
