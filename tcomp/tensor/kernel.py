"""A kernel: one fused group of operators, the unit that is scheduled, tuned, built and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tcomp.errors import GraphError
from tcomp.relay.dims import DimExpr
from tcomp.relay.graph import Attr, Constant, Graph, Node, Value
from tcomp.relay.op import OPS, Cost, FusionKind

ANCHOR_KINDS = (FusionKind.CONTRACTION, FusionKind.REDUCTION, FusionKind.OPAQUE)


@dataclass(frozen=True)
class Kernel:
    """A fused group with static types.

    `body` is a closed graph; its constants are scalars only, larger ones come in as inputs.
    `constant_inputs` are the indices of inputs known at compile time (weights), which a template may
    pack. Two kernels with equal `key` compute the same and share one schedule and one piece of code.
    """

    body: Graph
    constant_inputs: frozenset[int] = frozenset()

    @staticmethod
    def of(node: Node) -> Kernel:
        """The kernel of a `fused` node."""
        body = node.attrs["body"]
        if not isinstance(body, Graph):
            raise GraphError(f"{node.where} has no body; run the fuse pass first")
        return Kernel(body, frozenset(i for i, v in enumerate(node.inputs) if isinstance(v, Constant)))

    @cached_property
    def anchors(self) -> tuple[Node, ...]:
        """The operators that decide the schedule, in order: a chain of contractions where there are several.

        Only templates that say so (`Template.takes_chains`) see kernels with more than one.
        """
        anchors = anchors_of(self.body)
        if len(anchors) > 1 and any(OPS[n.op].kind is not FusionKind.CONTRACTION for n in anchors):
            raise GraphError(f"a kernel has two anchors: {', '.join(n.op for n in anchors)}")
        return anchors

    @property
    def anchor(self) -> Node | None:
        """The last of `anchors`, which makes the outputs; None for purely elementwise or movement groups."""
        return self.anchors[-1] if self.anchors else None

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of one run."""
        return sum(_cost(n).flops for n in self.body.nodes)

    @cached_property
    def nbytes(self) -> int:
        """Bytes read and written at least once: inputs and outputs."""
        return sum(v.type.nbytes for v in (*self.body.inputs, *self.body.outputs))

    @cached_property
    def label(self) -> str:
        """A short name for people and symbols: the operators in order, `conv2d_add_relu`."""
        ops = [n.op for n in self.body.nodes]
        return "_".join(ops[:4]) + (f"_and_{len(ops) - 4}_more" if len(ops) > 4 else "")

    @cached_property
    def key(self) -> str:
        """Canonical text: operators, shapes, dtypes, non-default attributes, data flow. One line.

        `(f32[1,4,56,56,16], const f32[64,64,3,3]) %2=conv2d(%0,%1){padding=(1,1,1,1)} %3=relu(%2) -> %3`
        """
        numbers = {v: f"%{i}" for i, v in enumerate(self.body.inputs)}
        parts = [
            ("const " if i in self.constant_inputs else "") + str(v.type)
            for i, v in enumerate(self.body.inputs)
        ]
        text = [f"({', '.join(parts)})"]
        for node in self.body.nodes:
            operands = ",".join(_operand(v, numbers) for v in node.inputs)
            first = len(numbers)
            for output in node.outputs:
                numbers[output] = f"%{len(numbers)}"
            names = ",".join(f"%{i}" for i in range(first, len(numbers)))
            text.append(f"{names}={node.op}({operands}){_attrs(node)}")
        text.append("-> " + ",".join(numbers[v] for v in self.body.outputs))
        return " ".join(text)


def anchors_of(body: Graph) -> tuple[Node, ...]:
    """The operators of a kernel's body that elementwise work is fused around."""
    return tuple(n for n in body.nodes if OPS[n.op].kind in ANCHOR_KINDS)


def only_elementwise_between(kernel: Kernel, first: Node, second: Node) -> bool:
    """Whether `second` alone reads what `first` makes, with nothing but elementwise work between them."""
    made: set[Value] = {first.output}
    for node in kernel.body.nodes:
        if node is second or made.isdisjoint(node.inputs):
            continue
        if OPS[node.op].kind is not FusionKind.ELEMENTWISE or node.output.shape != first.output.shape:
            return False
        made |= set(node.outputs)
    return second.inputs[0] in made and made.isdisjoint(kernel.body.outputs)


def _cost(node: Node) -> Cost:
    return OPS[node.op].cost_of([v.type for v in node.inputs], node.attrs, [v.type for v in node.outputs])


def _operand(value: Value, numbers: Mapping[Value, str]) -> str:
    if isinstance(value, Constant) and value not in numbers:
        if value.type.size != 1:
            raise GraphError(f"a kernel body holds a constant of type {value.type}; only scalars may stay")
        return f"{value.data.reshape(()).item()!r}:{value.type}"
    return numbers[value]


def _attrs(node: Node) -> str:
    defaults = OPS[node.op].attrs
    kept = {k: v for k, v in node.attrs.items() if v != defaults.get(k)}
    return "{" + ",".join(f"{k}={_attr(v)}" for k, v in kept.items()) + "}" if kept else ""


def _attr(value: Attr) -> str:
    if isinstance(value, tuple):
        return "(" + ",".join(_attr(v) for v in value) + ")"
    if isinstance(value, (Graph, DimExpr)):
        raise GraphError("a kernel's operators must have static attributes and no nested graphs")
    return str(value)
