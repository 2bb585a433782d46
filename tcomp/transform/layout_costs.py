"""What layouts cost: estimated cycles of one operator, or of a change of layout.

Convolutions and pools have the estimates of their templates. What only moves elements is counted by its
bytes. A cycle is one in which each of the target's ports starts a product of whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tcomp.relay.attributes import integers
from tcomp.relay.builder import make_node
from tcomp.relay.graph import Attr, Graph, Node, Value
from tcomp.relay.layouts import channel_block, layout_shape
from tcomp.relay.types import ROUNDED, TensorType, numpy_dtype, stored_as
from tcomp.target.target import Target
from tcomp.target.tile_map import LINE_BYTES
from tcomp.tensor.amx import has_tiles
from tcomp.tensor.gpu.rates import LAUNCH_CYCLES, memory_cycles
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.tensor.tensor_cores.wgmma_plan import ARCH

BYTES_PER_CYCLE = 16.0
"""Read and written by kernels that only move or map elements, from the second-level or last-level cache."""
KERNEL_CYCLES = 300.0
"""Of calling one more kernel."""
_DOUBT = 1.1
"""Estimates are off by about a tenth: a convolution must be better by more than that in plain layout, or with
blocks that do not fill a vector."""
_BY_CHUNKS = 1.04
"""Estimates are as near where threads copy windows by chunks, or the copy engine by lines, which leaves the
threads alone."""


def stored(type_: TensorType, layout: str) -> TensorType:
    """The type in which `layout` stores a plain tensor of type `type_`."""
    batch, channels, *spatial = type_.shape
    return type_.with_shape(layout_shape(batch, channels, tuple(spatial), layout))


def factor_of(dtype: str, target: Target) -> str:
    """The type in which products of `dtype` take their operands, if layouts are for `target.fast_dtype`."""
    return target.fast_dtype or dtype if dtype == "float32" else dtype


class LayoutCosts:
    """Estimates for one target. Equal kernels are estimated once. `wide` are values that keep their type."""

    def __init__(self, target: Target, wide: Sequence[Value] = ()) -> None:
        self._target = target
        self._wide = frozenset(wide)
        gpu = target.gpu
        self._bytes_per_cycle = BYTES_PER_CYCLE if gpu is None else 1 / memory_cycles(gpu, 1)
        self._kernel_cycles = KERNEL_CYCLES if gpu is None else LAUNCH_CYCLES
        self._narrow = target.fast_dtype if gpu is not None or has_tiles(target) else None
        """The type that products are lowered to after layouts are chosen."""
        self._known: dict[tuple[object, ...], float] = {}

    def convolution(self, node: Node, source: str, result: str) -> float:
        """Of a plain `conv2d` node that reads layout `source` and writes `result`."""
        x, weight = (v.type for v in node.inputs)
        attrs = {**node.attrs, "data_layout": source, "out_layout": result}
        gpu = self._target.gpu
        stays = gpu is None and node.inputs[0] in self._wide and self._narrow not in ROUNDED
        narrow = None if stays or x.dtype != "float32" else self._narrow
        rounds = stays and has_tiles(self._target) and x.dtype == "float32"
        if narrow in ROUNDED or rounds:
            attrs["multiply_as"] = self._narrow or ""
        elif narrow is not None:
            x, weight = (replace(type_, dtype=narrow) for type_ in (x, weight))
            # On GPUs the layout decides how many sectors a warp stores of what is rounded again.
            attrs["out_dtype"] = "float32" if gpu is None else narrow
        cycles = self._anchor(node.op, [stored(x, source), weight], attrs, constants=frozenset({1}))
        lanes = self._target.lanes(stored_as(self._narrow or node.output.dtype))
        usual = (channel_block(result) or 1) % lanes == 0
        return cycles * (1.0 if usual else _DOUBT) * (_BY_CHUNKS if self._reads_chunks(x, source) else 1.0)

    def _reads_chunks(self, x: TensorType, source: str) -> bool:
        """Whether a convolution of `x` in layout `source` has no lines where lines could be copied."""
        gpu, block = self._target.gpu, channel_block(source) or 1
        line = LINE_BYTES // numpy_dtype(x.dtype).itemsize
        return gpu is not None and gpu.arch == ARCH and block % line != 0

    def pool(self, node: Node, layout: str) -> float:
        """Of a plain pool whose input and output have `layout`."""
        attrs = {**node.attrs, "data_layout": layout}
        return self._anchor(node.op, [stored(node.inputs[0].type, layout)], attrs)

    def elementwise(self, node: Node, layout: str) -> float:
        """Of writing the result: most elementwise operators are fused with what makes their operand."""
        return stored(node.output.type, layout).nbytes / self._bytes_per_cycle

    def reading(self, node: Node, layout: str) -> float:
        """Of an operator that reads its first operand in `layout` once."""
        return stored(node.inputs[0].type, layout).nbytes / self._bytes_per_cycle

    def concat(self, node: Node, layout: str) -> float:
        """Of a concatenation along the channels: parts that begin with a block are written in place."""
        block, batch = channel_block(layout) or 1, node.output.type.static_shape[0]
        whole = all(v.type.static_shape[1] % block == 0 for v in node.inputs)
        if whole and batch == 1:
            return 0.0
        nbytes = sum(stored(v.type, layout).nbytes for v in (*node.inputs, node.output))
        return self._kernel_cycles + nbytes / self._bytes_per_cycle

    def transform(self, type_: TensorType, source: str, result: str) -> float:
        """Of changing the layout of a tensor whose plain type is `type_`."""
        if source == result or is_view(type_, source, result):
            return 0.0
        nbytes = stored(type_, source).nbytes + stored(type_, result).nbytes
        return self._kernel_cycles + nbytes / self._bytes_per_cycle

    def _anchor(
        self,
        op: str,
        types: Sequence[TensorType],
        attrs: dict[str, Attr],
        constants: frozenset[int] = frozenset(),
    ) -> float:
        key = (op, *types, *attrs.items())
        if key not in self._known:
            operands = [Value(t) for t in types]
            node = make_node(op, operands, attrs, "")
            kernel = Kernel(Graph(tuple(operands), (node,), node.outputs), constants)
            template = template_for(kernel, self._target)
            self._known[key] = template.estimate(kernel, self._target)
        return self._known[key]


def is_view(type_: TensorType, source: str, result: str) -> bool:
    """Whether two layouts of a plain tensor hold the same bytes: single pixels in whole blocks."""
    _, channels, *spatial = type_.static_shape
    blocks = (channel_block(source) or 1, channel_block(result) or 1)
    return all(d == 1 for d in spatial) and all(channels % b == 0 for b in blocks)


def reduces_pixels(node: Node) -> bool:
    """Whether a reduction leaves every channel one element an axis that it reduces, none of them channels."""
    return bool(node.attrs["keepdims"]) and set(integers(node.attrs, "axes")) <= {2, 3}
