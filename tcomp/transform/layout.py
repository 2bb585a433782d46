"""Blocked channel layout for convolution chains: NCHW becomes NCHW16c, lanes of channels innermost.

Convolutions and pools take and give blocked tensors. A blocked tensor is known in plain form only where
something needs it: each plain tensor has at most one blocked form and the other way round, so opposite
transforms never arise. Elementwise operators, concatenations of whole blocks, spatial reductions and
gathers along a spatial axis stay blocked when an operand is blocked; graph inputs and outputs are plain.
Channels that are no multiple of the block leave lanes of the last block without meaning; operators that
would make them infinite or NaN take the plain form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tcomp.relay.attributes import flag, integer, integers
from tcomp.relay.builder import make_node
from tcomp.relay.graph import Attrs, Constant, Graph, Node, Value, topological
from tcomp.relay.layouts import PLAIN, to_layout
from tcomp.relay.op import OPS, LayoutRule
from tcomp.relay.types import Array
from tcomp.transform.pass_ import Pass, declare_pass

_SPATIAL_REDUCTIONS = ("reduce_mean", "reduce_max", "reduce_min", "reduce_sum")


@declare_pass
@dataclass(frozen=True)
class BlockChannels(Pass):
    """Put float32 convolution chains into layout NCHW`block`c.

    Graphs with symbolic shapes stay as they are.
    """

    name: ClassVar[str] = "block-channels"
    block: int = 16

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        if not graph.is_static or not any(OPS[n.op].layout is LayoutRule.CONVOLUTION for n in graph.nodes):
            return graph
        blocking = _Blocking(graph, self.block, stats)
        for node in graph.nodes:
            blocking.visit(node)
        return blocking.finish()


class _Blocking:
    """A graph under conversion: what each old value is in plain and in blocked form."""

    def __init__(self, graph: Graph, block: int, stats: Counter[str]) -> None:
        self._graph = graph
        self._block = block
        self._layout = f"NCHW{block}c"
        self._stats = stats
        self._plain: dict[Value, Value] = {}
        self._blocked: dict[Value, Value] = {}
        self._producers: dict[Value, Node] = {}

    def visit(self, node: Node) -> None:
        """Append `node` in the layout that suits it."""
        rule = OPS[node.op].layout
        if node.op == "conv2d" and self._is_plain_float(node):
            done = self._convolution(node)
        elif node.op in ("max_pool2d", "avg_pool2d") and self._is_plain_float(node):
            done = self._pool(node)
        elif not any(v in self._blocked and v.type.rank == 4 for v in node.inputs):
            done = False
        elif rule is LayoutRule.ELEMENTWISE and len(node.outputs) == 1:
            done = self._elementwise(node)
        elif node.op == "concat":
            done = self._concat(node)
        elif node.op in _SPATIAL_REDUCTIONS:
            done = self._reduction(node)
        elif node.op == "gather":
            done = self._gather(node)
        else:
            done = False
        if not done:
            self._keep(node)

    def finish(self) -> Graph:
        outputs = [self._as_plain(v) for v in self._graph.outputs]
        nodes = topological(outputs, self._producers)
        return Graph(self._graph.inputs, tuple(nodes), tuple(outputs), self._graph.name)

    def _is_plain_float(self, node: Node) -> bool:
        return node.output.dtype == "float32" and node.attrs["data_layout"] == PLAIN

    def _convolution(self, node: Node) -> bool:
        x, weight = node.inputs
        groups, c = integer(node.attrs, "groups"), self._block
        outputs, group_inputs = weight.type.static_shape[:2]
        inputs = group_inputs * groups
        if not isinstance(weight, Constant) or outputs < c // 2:
            return False
        depthwise = groups == inputs == outputs
        if groups > 1 and not depthwise and (group_inputs % c or (outputs // groups) % c):
            return False
        first = inputs < c and groups == 1 and x not in self._blocked
        source = self._as_plain(x) if first else self._as_blocked(x)
        attrs = {**node.attrs, "data_layout": PLAIN if first else self._layout, "out_layout": self._layout}
        self._emit_blocked(node, [source, weight], attrs)
        return True

    def _pool(self, node: Node) -> bool:
        (x,) = node.inputs
        if x not in self._blocked and x.type.static_shape[1] < self._block:
            return False
        if x not in self._blocked and not self._reaches_convolution(node):
            return False
        self._emit_blocked(node, [self._as_blocked(x)], {**node.attrs, "data_layout": self._layout})
        return True

    def _reaches_convolution(self, node: Node) -> bool:
        return any(n.op == "conv2d" for n in self._graph.users.get(node.output, ()))

    def _elementwise(self, node: Node) -> bool:
        if node.output.type.rank != 4:
            return False
        channels = node.output.type.static_shape[1]
        ragged = channels % self._block != 0
        if ragged and not OPS[node.op].zero_is_finite and not self._has_finite_lanes(node):
            return False
        operands = [self._operand(v, channels, node.op) for v in node.inputs]
        if any(v is None for v in operands):
            return False
        self._emit_blocked(node, [v for v in operands if v is not None], node.attrs)
        return True

    def _has_finite_lanes(self, node: Node) -> bool:
        """Division by a constant: its lanes are filled with ones."""
        return node.op == "div" and isinstance(node.inputs[1], Constant)

    def _operand(self, value: Value, channels: int, op: str) -> Value | None:
        """`value` as an operand beside blocked tensors of `channels`; None when it cannot be one."""
        shape = value.type.static_shape
        if value.type.size == 1:
            return self._with_rank_one(value)
        padded = (1,) * (4 - len(shape)) + shape
        if isinstance(value, Constant):
            return self._blocked_constant(value, padded, 1.0 if op == "div" else 0.0)
        if len(shape) != 4 or padded[1] != channels:
            return None
        return self._as_blocked(value)

    def _with_rank_one(self, value: Value) -> Value:
        """A single element, at a rank that broadcasts against any tensor."""
        if isinstance(value, Constant):
            return Constant.of(value.data.reshape(()), value.name)
        plain = self._as_plain(value)
        if value.type.rank <= 1:
            return plain
        return self._emit("reshape", [plain], {"shape": (1,)}, "")

    def _blocked_constant(self, value: Constant, shape: tuple[int, ...], fill: float) -> Value:
        data: Array = value.data.reshape(shape)
        if shape[1] == 1:
            return Constant.of(data[..., np.newaxis], value.name)
        blocked = to_layout(data, self._layout)
        ragged = shape[1] % self._block
        if ragged and fill:
            lanes = np.arange(self._block) >= ragged
            blocked[:, -1] = np.where(lanes, np.asarray(fill, data.dtype), blocked[:, -1])
        return Constant.of(blocked, value.name)

    def _concat(self, node: Node) -> bool:
        if integer(node.attrs, "axis") != 1 or node.output.type.rank != 4 or node.output.dtype != "float32":
            return False
        if any(v.type.static_shape[1] % self._block for v in node.inputs):
            return False
        self._emit_blocked(node, [self._as_blocked(v) for v in node.inputs], node.attrs)
        return True

    def _reduction(self, node: Node) -> bool:
        (x,) = node.inputs
        if x not in self._blocked or not flag(node.attrs, "keepdims"):
            return False
        if not set(integers(node.attrs, "axes")) <= {2, 3}:
            return False
        self._emit_blocked(node, [self._blocked[x]], node.attrs)
        return True

    def _gather(self, node: Node) -> bool:
        """Rows or columns picked by constant indices, as a lowered resize does."""
        x, indices = node.inputs
        if x not in self._blocked or integer(node.attrs, "axis") not in (2, 3):
            return False
        if not isinstance(indices, Constant) or indices.type.rank != 1:
            return False
        self._emit_blocked(node, [self._blocked[x], indices], node.attrs)
        return True

    def _keep(self, node: Node) -> None:
        """Append `node` unchanged on the plain forms of its operands."""
        inputs = tuple(self._as_plain(v) for v in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        kept = node if same else replace(node, inputs=inputs)
        self._producers.update(dict.fromkeys(kept.outputs, kept))

    def _emit_blocked(self, node: Node, inputs: Sequence[Value], attrs: Attrs) -> None:
        """Append `node` on blocked operands; its output has a blocked form from here on."""
        self._blocked[node.output] = self._emit(node.op, inputs, attrs, node.name)
        self._stats[f"blocked {node.op}"] += 1

    def _emit(self, op: str, inputs: Sequence[Value], attrs: Attrs, name: str) -> Value:
        node = make_node(op, inputs, attrs, name)
        self._producers[node.output] = node
        return node.output

    def _as_blocked(self, value: Value) -> Value:
        if value not in self._blocked:
            self._blocked[value] = self._convert(value, PLAIN, self._layout, self._plain.get(value, value))
        return self._blocked[value]

    def _as_plain(self, value: Value) -> Value:
        if value in self._blocked and value not in self._producers and value not in self._plain:
            if value in self._graph.inputs or isinstance(value, Constant):
                return value
            self._plain[value] = self._convert(value, self._layout, PLAIN, self._blocked[value])
        return self._plain.get(value, value)

    def _convert(self, value: Value, src: str, dst: str, source: Value) -> Value:
        """A layout transform; a view where every spatial axis has one element and the blocks are whole."""
        batch, channels, *spatial = value.type.static_shape
        blocks = -(-channels // self._block)
        self._stats["layout transforms"] += 1
        if all(d == 1 for d in spatial) and channels % self._block == 0:
            shape = (batch, blocks, *spatial, self._block) if dst == self._layout else value.shape
            return self._emit("reshape", [source], {"shape": shape}, "")
        return self._emit("layout_transform", [source], {"src": src, "dst": dst, "channels": channels}, "")
