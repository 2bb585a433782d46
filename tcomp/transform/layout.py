"""Blocked channel layouts: NCHW becomes NCHW16c, lanes of channels innermost, where that is faster.

`tcomp.transform.layout_choice` decides which layout each operator works on; here the graph is rewritten.
A tensor is made in one layout and changed into another at most once, for all who read it there; graph
inputs and outputs are plain. Channels that are no multiple of the block leave lanes of the last block
without meaning; operators that would make them infinite or NaN take another layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tcomp.relay.builder import make_node
from tcomp.relay.graph import Attrs, Constant, Graph, Node, Value, topological
from tcomp.relay.layouts import PLAIN, channel_block, layout_shape, to_layout
from tcomp.relay.op import OPS, LayoutRule
from tcomp.relay.types import Array
from tcomp.target.target import TARGETS, Target
from tcomp.transform.layout_choice import NodeLayouts, choose_layouts
from tcomp.transform.layout_costs import is_view
from tcomp.transform.pass_ import Pass, declare_pass


@declare_pass
@dataclass(frozen=True)
class BlockChannels(Pass):
    """Put float32 convolutions and what is around them into the layouts that are fastest on `target`.

    For GPUs, and CPUs with tiles, they are weighed with operands of the `fast_dtype`, which they are to
    take. Graphs with symbolic shapes stay as they are.
    """

    name: ClassVar[str] = "block-channels"
    target: Target = TARGETS["x86-64-v4"]

    @staticmethod
    def for_isa(target: Target) -> BlockChannels:
        """For the instruction set of `target`, whatever its caches and cores.

        Records are keyed by instruction set and by kernels, so these must be the same on all its CPUs.
        """
        if target.gpu is not None:
            return BlockChannels(replace(TARGETS[f"cuda:{target.isa}"], fast_dtype=target.fast_dtype))
        caches = TARGETS[target.isa].cache_bytes if target.isa in TARGETS else target.cache_bytes
        return BlockChannels(replace(target, cores=1, cache_bytes=caches))

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        if not graph.is_static or not any(OPS[n.op].layout is LayoutRule.CONVOLUTION for n in graph.nodes):
            return graph
        blocking = _Blocking(graph, choose_layouts(graph, self.target, stats), stats)
        for node in graph.nodes:
            blocking.visit(node)
        return blocking.finish()


class _Blocking:
    """A graph under conversion: what each old value is in the layouts in which it is known so far."""

    def __init__(self, graph: Graph, layouts: Mapping[Node, NodeLayouts], stats: Counter[str]) -> None:
        self._graph = graph
        self._layouts = layouts
        self._stats = stats
        self._forms: dict[Value, dict[str, Value]] = {}
        """The layout in which a value is made comes first. A value without an entry is plain, as it was."""
        self._producers: dict[Value, Node] = {}

    def visit(self, node: Node) -> None:
        """Append `node` in its layouts."""
        layouts = self._layouts.get(node, NodeLayouts(PLAIN, PLAIN))
        if layouts.source == layouts.result == PLAIN:
            self._keep(node)
            return
        source, result = layouts.source, layouts.result
        if result != PLAIN:
            self._stats[f"blocked {node.op}"] += 1
        if node.op == "concat":
            made = self._concat(node, result)
        elif OPS[node.op].layout is LayoutRule.ELEMENTWISE:
            operands = [self._operand(v, node, result) for v in node.inputs]
            made = self._emit(node.op, operands, node.attrs, node.name)
        else:
            rule, attrs = OPS[node.op].layout, dict(node.attrs)
            if rule in (LayoutRule.CONVOLUTION, LayoutRule.POOL):
                attrs["data_layout"] = source
            if rule is LayoutRule.CONVOLUTION:
                attrs["out_layout"] = result
            x, *others = node.inputs
            made = self._emit(node.op, [self._in(x, source), *others], attrs, node.name)
        self._forms[node.output] = {result: made}

    def finish(self) -> Graph:
        outputs = [self._in(v, PLAIN) for v in self._graph.outputs]
        nodes = topological(outputs, self._producers)
        return Graph(self._graph.inputs, tuple(nodes), tuple(outputs), self._graph.name)

    def _operand(self, value: Value, node: Node, layout: str) -> Value:
        """`value` as an operand of the elementwise `node` in a blocked layout."""
        if value.type.size == 1:
            return self._with_rank_one(value)
        if isinstance(value, Constant):
            return _blocked_constant(value, layout, fill=1.0 if node.op == "div" else 0.0)
        return self._in(value, layout)

    def _with_rank_one(self, value: Value) -> Value:
        """A single element, at a rank that broadcasts against any tensor."""
        if isinstance(value, Constant):
            return Constant.of(value.data.reshape(()), value.name)
        plain = self._in(value, PLAIN)
        if value.type.rank <= 1:
            return plain
        return self._emit("reshape", [plain], {"shape": (1,)}, "")

    def _concat(self, node: Node, layout: str) -> Value:
        """Blocks one after the other; parts that do not begin with a block are joined in plain layout,
        which fusion makes one kernel with the changes of layout around it."""
        block = channel_block(layout) or 1
        if all(v.type.static_shape[1] % block == 0 for v in node.inputs):
            return self._emit(node.op, [self._in(v, layout) for v in node.inputs], node.attrs, node.name)
        joined = self._emit(node.op, [self._in(v, PLAIN) for v in node.inputs], node.attrs, node.name)
        return self._convert(node.output, PLAIN, layout, joined)

    def _keep(self, node: Node) -> None:
        """Append `node` unchanged on the plain forms of its operands."""
        inputs = tuple(self._in(v, PLAIN) for v in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        kept = node if same else replace(node, inputs=inputs)
        self._producers.update(dict.fromkeys(kept.outputs, kept))

    def _emit(self, op: str, inputs: Sequence[Value], attrs: Attrs, name: str) -> Value:
        node = make_node(op, inputs, attrs, name)
        self._producers[node.output] = node
        return node.output

    def _in(self, value: Value, layout: str) -> Value:
        """`value` in `layout`, changed from the layout in which it is made where that is another."""
        forms = self._forms.setdefault(value, {PLAIN: value})
        if layout not in forms:
            made, source = next(iter(forms.items()))
            forms[layout] = self._convert(value, made, layout, source)
        return forms[layout]

    def _convert(self, value: Value, src: str, dst: str, source: Value) -> Value:
        """A layout transform; a view where both layouts hold the same bytes."""
        batch, channels, *spatial = value.type.static_shape
        self._stats["layout transforms"] += 1
        if is_view(value.type, src, dst):
            shape = layout_shape(batch, channels, tuple(spatial), dst)
            return self._emit("reshape", [source], {"shape": shape}, "")
        return self._emit("layout_transform", [source], {"src": src, "dst": dst, "channels": channels}, "")


def _blocked_constant(value: Constant, layout: str, fill: float) -> Constant:
    """A constant that broadcasts against plain tensors as one that does so against tensors in `layout`, with
    `fill` in the lanes beyond its channels."""
    shape = value.type.static_shape
    data: Array = value.data.reshape((1,) * (4 - len(shape)) + shape)
    channels, block = data.shape[1], channel_block(layout) or 1
    if channels == 1:
        return Constant.of(data[..., np.newaxis], value.name)
    blocked = to_layout(data, layout)
    if channels % block and fill:
        lanes = np.arange(block) >= channels % block
        blocked[:, -1] = np.where(lanes, np.asarray(fill, data.dtype), blocked[:, -1])
    return Constant.of(blocked, value.name)
