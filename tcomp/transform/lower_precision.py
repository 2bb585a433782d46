"""Products in 16 bits: kernels around contractions read and write float16 or bfloat16.

It runs on fused kernels. A value between two kernels is stored in 16 bits when a product writes or reads it;
inside a kernel arithmetic stays float32: products of 16-bit operands are summed in float32 (`out_dtype`),
other operators widen what they read, and a value is rounded once, where its kernel stores it. Operators that
only move elements never leave 16 bits. Norms, softmax and reductions thus compute as before on rounded input.

Graph inputs and outputs keep their types. A product stays in float32 when an operand is a graph input, is
computed inside its kernel, or is a constant beyond the range of 16 bits, and when its kernel is to be kept.
First convolutions of images, which read few plain channels, may round their operands themselves where they
multiply them (`multiply_as`): these stay stored in float32. On GPUs convolutions round inside their kernel
what they read in float32 or compute, as a launch gathers it for tensor cores.
Weights that are unpacked inside their kernel become 16 bits there, as their scales have these.
Chains of convolutions stay in float32 with everything they read and write.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tcomp.errors import GraphError
from tcomp.relay.attributes import graph as graph_attribute
from tcomp.relay.attributes import text
from tcomp.relay.builder import make_node
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.layouts import channel_block
from tcomp.relay.op import OPS, FusionKind
from tcomp.relay.types import TensorType, numpy_dtype
from tcomp.tensor.cpu.patches import DTYPE, has_patches
from tcomp.tensor.kernel import anchors_of
from tcomp.transform.pass_ import Pass, declare_pass

MOVING_ANCHORS = ("max_pool1d", "max_pool2d", "max_pool3d")
"""Anchors whose results are elements of their operand."""
RANGES = {"float16": 65504.0, "bfloat16": 3.3e38}
"""The 16-bit types and the largest magnitude that constants may have in each."""
_LARGEST_LEVELS = {"uint8": 255, "float8_e4m3fn": 448, "float8_e5m2": 57344}
"""What weights of a type are at most, in scales."""
_MOVING = (FusionKind.MOVEMENT, FusionKind.VIEW)


@declare_pass
@dataclass(frozen=True)
class LowerPrecision(Pass):
    """Let products of float32 take operands of `dtype`.

    `keep` names kernels that stay in float32 with everything they read and write, joined by `|`. Convolutions
    whose channels are not blocked gain nothing on CPUs, and are lowered when `plain` says so; attention, but
    for its mask, is when `attention` says so. With `patches`, convolutions that have them
    (`tcomp.tensor.cpu.patches`) round what they read to `dtype`, which is bfloat16.
    """

    name: ClassVar[str] = "lower-precision"
    dtype: str = "float16"
    keep: str = ""
    plain: bool = False
    attention: bool = False
    patches: bool = False

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        if self.dtype not in RANGES:
            raise GraphError(f"lower-precision: dtype is {self.dtype}; it must be {' or '.join(RANGES)}")
        if self.patches and self.dtype != DTYPE:
            raise GraphError(f"lower-precision: patches are of {DTYPE}, dtype is {self.dtype}")
        if not graph.is_static:
            return graph
        return _Lowering(graph, self, stats).run()


def product_kernels(graph: Graph) -> list[Node]:
    """The kernels of an optimized graph whose anchor is a product."""
    return [n for n in graph.nodes if _is_product(_anchor(n)) or is_lowered(n)]


def is_lowered(kernel: Node) -> bool:
    """Whether a kernel's product takes operands of 16 bits, rounds them, or may multiply sums of them."""
    anchor = _anchor(kernel)
    if anchor is None:
        return False
    if anchor.op == "attention":
        return anchor.inputs[0].dtype in RANGES
    if not _is_product(anchor, plain=True):
        return False
    return anchor.inputs[0].dtype in RANGES or bool(anchor.attrs["multiply_as"] or anchor.attrs["strassen"])


def takes_fewer_bits(kernel: Node) -> bool:
    """Whether a kernel of a lowered graph computes with fewer bits than before: products, and what reads or
    writes 16 bits."""
    return is_lowered(kernel) or any(v.dtype in RANGES for v in (*kernel.inputs, *kernel.outputs))


def _is_product(anchor: Node | None, plain: bool = False) -> bool:
    """Whether an anchor gains from operands of 16 bits: matrix products, convolutions of blocked channels or,
    with `plain`, of any."""
    if anchor is None:
        return False
    if anchor.op in ("conv1d", "conv2d", "conv3d"):
        return plain or channel_block(text(anchor.attrs, "data_layout")) is not None
    return anchor.op == "matmul"


def _anchor(node: Node) -> Node | None:
    if node.op != "fused":
        return None
    return next(iter(anchors_of(graph_attribute(node.attrs, "body"))), None)


def _rows_of_attention(anchor: Node, body: Graph) -> set[int]:
    """The inputs of a kernel's body that its attention has queries, keys and values from."""
    wanted = set(anchor.inputs[:3])
    for node in reversed(body.nodes):
        if wanted & set(node.outputs):
            wanted |= set(node.inputs)
    return {i for i, v in enumerate(body.inputs) if v in wanted}


class _Lowering:
    """A graph under conversion."""

    def __init__(self, graph: Graph, options: LowerPrecision, stats: Counter[str]) -> None:
        self._graph = graph
        self._dtype = options.dtype
        self._keep = frozenset(options.keep.split("|")) - {""}
        self._plain = options.plain
        self._attention = options.attention
        self._patches = options.patches
        self._stats = stats
        self._groups: dict[Value, Value] = {}
        for node in graph.nodes:
            if node.op != "fused":
                self._join((*node.inputs, *node.outputs))
        self._narrow = self._chosen()
        self._values: dict[Value, Value] = {}
        self._constants: dict[Constant, Constant] = {}

    def run(self) -> Graph:
        if not self._narrow and not any(self._rounds(n) for n in self._graph.nodes):
            return self._graph
        nodes: list[Node] = []
        for node in self._graph.nodes:
            made = self._kernel(node) if node.op == "fused" else self._view(node)
            self._values.update(zip(node.outputs, made.outputs, strict=True))
            nodes.append(made)
        if self._narrow:
            self._stats[f"values in {self._dtype}"] += len(self._narrow)
        outputs = tuple(self._values.get(v, v) for v in self._graph.outputs)
        return Graph(self._graph.inputs, tuple(nodes), outputs, self._graph.name)

    def _join(self, values: tuple[Value, ...]) -> None:
        """Views, slices and concatenations in place share the element type of what they are made of."""
        first = self._group(values[0])
        for value in values:
            if value.dtype == first.dtype:
                self._groups[self._group(value)] = first

    def _group(self, value: Value) -> Value:
        """One value for all that must have the same element type as `value`."""
        while value in self._groups and self._groups[value] is not value:
            value = self._groups[value]
        return value

    def _chosen(self) -> frozenset[Value]:
        """The groups of values that are stored in 16 bits."""
        fixed = {self._group(v) for v in (*self._graph.inputs, *self._graph.outputs, *self._graph.constants)}
        touched: set[Value] = set()
        for node in self._graph.nodes:
            if node.op != "fused":
                continue
            anchor = _anchor(node)
            reads = {self._group(v) for v in node.inputs}
            writes = {self._group(v) for v in node.outputs}
            is_chain = len(anchors_of(graph_attribute(node.attrs, "body"))) > 1
            if node.name in self._keep or is_chain or (anchor and OPS[anchor.op].kind is FusionKind.OPAQUE):
                fixed |= reads | writes
            elif _is_product(anchor, self._plain):
                touched |= reads | writes
            elif self._rounds(node):
                touched |= writes
            elif anchor is not None and anchor.op == "attention":
                rows = {
                    self._group(node.inputs[i])
                    for i in _rows_of_attention(anchor, graph_attribute(node.attrs, "body"))
                }
                if self._attention:
                    touched |= rows | writes
                else:
                    fixed |= reads
        return frozenset(v for v in touched - fixed if v.dtype == "float32")

    def _is_narrow(self, value: Value) -> bool:
        return self._group(value) in self._narrow

    def _rounds(self, node: Node) -> bool:
        """Whether a kernel's product may round operands that it reads in float32."""
        anchor = _anchor(node)
        if not self._patches or node.name in self._keep or anchor is None or not has_patches(anchor):
            return False
        body = graph_attribute(node.attrs, "body")
        weights = [v for v, own in zip(node.inputs, body.inputs, strict=True) if own is anchor.inputs[1]]
        return len(anchors_of(body)) == 1 and all(isinstance(v, Constant) for v in weights)

    def _view(self, node: Node) -> Node:
        return make_node(node.op, [self._values.get(v, v) for v in node.inputs], node.attrs, node.name)

    def _kernel(self, node: Node) -> Node:
        body = graph_attribute(node.attrs, "body")
        anchor = _anchor(node)
        operands = list(self._values.get(v, v) for v in node.inputs)
        product = _is_product(anchor, self._plain)
        lowered = anchor is not None and product and self._lower(node, body, anchor, operands)
        rounds = self._rounds(node)
        if product or rounds:
            self._stats[f"products in {self._dtype if lowered or rounds else 'float32'}"] += 1
        changed = _Body(body, self._dtype, anchor if lowered else None, anchor if rounds else None)
        results = changed.rebuilt(
            [v.type for v in operands], [self._dtype if self._is_narrow(v) else v.dtype for v in node.outputs]
        )
        return make_node("fused", operands, {"body": results}, node.name)

    def _lower(self, node: Node, body: Graph, anchor: Node, operands: list[Value]) -> bool:
        """Whether the product can take 16-bit operands; its constants in `operands` are converted then."""
        if node.name in self._keep or anchor.output.dtype != "float32":
            return False
        places: list[int] = []
        for operand in anchor.inputs:
            unpacking = next((n for n in body.nodes if operand in n.outputs and OPS[n.op].unpacks), None)
            value = operand if unpacking is None else unpacking.inputs[1]
            place = next((i for i, v in enumerate(body.inputs) if v is value), None)
            outer = None if place is None else node.inputs[place]
            if operand is anchor.inputs[0] and self._gathers(anchor) and not isinstance(outer, Constant):
                continue
            if place is None or outer is None:
                return False
            if isinstance(outer, Constant):
                largest = 1 if unpacking is None else _LARGEST_LEVELS[unpacking.inputs[0].dtype]
                if body.use_count(value) != 1 or not self._in_range(outer, largest):
                    return False
            elif not self._is_narrow(outer):
                return False
            places.append(place)
        for place in places:
            outer = node.inputs[place]
            if isinstance(outer, Constant):
                operands[place] = self._converted(outer)
        return True

    def _gathers(self, anchor: Node) -> bool:
        """Whether what a convolution reads can be rounded inside its kernel: on GPUs a launch brings it into
        the form that tensor cores take, if it is not stored so."""
        return self._plain and anchor.op.startswith("conv") and anchor.attrs["groups"] == 1

    def _in_range(self, constant: Constant, factor: int) -> bool:
        return factor * float(np.abs(constant.data).max(initial=0.0)) <= RANGES[self._dtype]

    def _converted(self, constant: Constant) -> Constant:
        if constant not in self._constants:
            data = constant.data.astype(numpy_dtype(self._dtype))
            self._constants[constant] = Constant.of(data, constant.name)
        return self._constants[constant]


class _Body:
    """The body of one kernel under conversion; `product` is its anchor if that takes 16-bit operands, and
    `rounding` if it rounds its operands."""

    def __init__(self, body: Graph, dtype: str, product: Node | None, rounding: Node | None) -> None:
        self._body = body
        self._dtype = dtype
        self._product = product
        self._rounding = rounding
        self._values: dict[Value, Value] = {}
        self._wide: dict[Value, Value] = {}
        self._nodes: list[Node] = []

    def rebuilt(self, inputs: list[TensorType], outputs: list[str]) -> Graph:
        """The body with inputs of these types and outputs of these element types."""
        for old, type_ in zip(self._body.inputs, inputs, strict=True):
            self._values[old] = old if old.type == type_ else replace(old, type=type_)
        for node in self._body.nodes:
            self._visit(node)
        results = [self._as(self._values[v], d) for v, d in zip(self._body.outputs, outputs, strict=True)]
        new_inputs = tuple(self._values[v] for v in self._body.inputs)
        return Graph(new_inputs, tuple(self._nodes), tuple(results), self._body.name)

    def _visit(self, node: Node) -> None:
        operands = [self._values.get(v, v) for v in node.inputs]
        attrs = node.attrs
        moved = {v.dtype for v, old in zip(operands, node.inputs, strict=True) if old.dtype == "float32"}
        if node is self._product:
            operands = [self._as(v, self._dtype) if v.dtype == "float32" else v for v in operands]
            attrs = {**node.attrs, "out_dtype": "float32"}
        elif node.op == "attention" and {v.dtype for v in operands[:3]} == {self._dtype}:
            masks = zip(operands[3:], node.inputs[3:], strict=True)
            operands[3:] = [self._as(v, old.dtype) for v, old in masks]
        elif (OPS[node.op].kind not in _MOVING and node.op not in MOVING_ANCHORS) or len(moved) > 1:
            operands = [self._as(v, old.dtype) for v, old in zip(operands, node.inputs, strict=True)]
        if node is self._rounding:
            attrs = {**node.attrs, "multiply_as": self._dtype}
        made = make_node(node.op, operands, attrs, node.name)
        self._nodes.append(made)
        self._values.update(zip(node.outputs, made.outputs, strict=True))

    def _as(self, value: Value, dtype: str) -> Value:
        """`value` as float32 or as the 16-bit type."""
        if value.dtype == dtype:
            return value
        if dtype == "float32" and value in self._wide:
            return self._wide[value]
        node = make_node("cast", [value], {"dtype": dtype})
        self._nodes.append(node)
        if dtype == "float32":
            self._wide[value] = node.output
        return node.output
