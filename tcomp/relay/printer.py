"""Relay text: what `tcomp opt` prints and `tcomp.relay.parser` reads back exactly.

    weights {
      @conv1.weight: f32[64,3,7,7] #5f2c0f7a61d3c1b2
    }
    graph main(%x: f32[1,3,224,224]) {
      %0 = conv2d(%x, @conv1.weight) {strides=(2, 2), padding=(3, 3, 3, 3)} : f32[1,64,112,112] "conv1"
      %1 = maximum(%0, 0.0: f32[]) : f32[1,64,112,112]
      return %1
    }

Attributes with their default value are left out. Constants of up to 8 elements are written in place; larger
ones are named in the `weights` table with a hash of their content, and their bytes are stored beside the
text (`save_graph`) as safetensors. Names that are not plain are quoted; a dimension expression inside an
attribute stands between backticks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from tcomp.files import written_beside
from tcomp.relay.dims import DimExpr
from tcomp.relay.graph import Attr, Constant, Graph, Node, Value, subgraphs
from tcomp.relay.op import OPS
from tcomp.relay.types import BITS, Array, dtype_of

INLINE_ELEMENTS = 8
_PLAIN = re.compile(r"[A-Za-z_][\w.\-]*")


def content_hash(data: Array) -> str:
    """16 hexadecimal digits of the SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{data.dtype.name}{data.shape}".encode())
    digest.update(np.ascontiguousarray(data).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()[:16]


def print_graph(graph: Graph) -> str:
    """`graph` as Relay text."""
    return _Printer(graph).text()


def weights_of(graph: Graph) -> dict[str, Constant]:
    """The constants that the text of `graph` refers to by name."""
    return _Printer(graph).weights


def save_graph(graph: Graph, path: Path) -> None:
    """Write `path` (Relay text) and, when there are large constants, `path` + `.safetensors`.

    Raises OSError when they cannot be written.
    """
    printer = _Printer(graph)
    if printer.weights:
        stored = {n: _storable(c.data) for n, c in printer.weights.items()}
        with written_beside(weights_path(path)) as beside:
            try:
                save_file(stored, beside)
            except SafetensorError as error:
                raise OSError(None, str(error)) from None
    with written_beside(path) as beside:
        beside.write_text(printer.text(), encoding="utf-8")


def weights_path(path: Path) -> Path:
    """Where the weights of the Relay text at `path` are stored."""
    return path.with_name(path.name + ".safetensors")


def _storable(data: Array) -> Array:
    return np.ascontiguousarray(data).view(BITS.get(dtype_of(data), data.dtype))


class _Printer:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.weights: dict[str, Constant] = {}
        self._weight_names: dict[Constant, str] = {}
        for constant in _all_constants(graph):
            if constant.data.size > INLINE_ELEMENTS and constant not in self._weight_names:
                name = _unique(constant.name or "w", self.weights)
                self.weights[name] = constant
                self._weight_names[constant] = name

    def text(self) -> str:
        lines: list[str] = []
        if self.weights:
            lines.append("weights {")
            lines += [f"  @{_name(n)}: {c.type} #{content_hash(c.data)}" for n, c in self.weights.items()]
            lines.append("}")
        return "\n".join([*lines, *self._graph_lines(self._graph, "")]) + "\n"

    def _graph_lines(self, graph: Graph, indent: str) -> list[str]:
        names: dict[Value, str] = {}
        taken: dict[str, Value] = {}
        values = [*graph.inputs, *(v for n in graph.nodes for v in n.outputs)]
        anonymous = 0
        for value in values:
            if value.name and not value.name.isdigit():
                label = _unique(value.name, taken)
            else:
                label, anonymous = str(anonymous), anonymous + 1
            taken[label] = value
            names[value] = f"%{_name(label)}"
        parameters = ", ".join(f"{names[v]}: {v.type}" for v in graph.inputs)
        lines = [f"{indent}graph {_name(graph.name)}({parameters}) {{"]
        for node in graph.nodes:
            lines += self._node_lines(node, names, indent + "  ")
        returned = ", ".join(self._operand(v, names) for v in graph.outputs)
        return [*lines, f"{indent}  return {returned}", f"{indent}}}"]

    def _node_lines(self, node: Node, names: dict[Value, str], indent: str) -> list[str]:
        results = ", ".join(names[v] for v in node.outputs)
        operands = ", ".join(self._operand(v, names) for v in node.inputs)
        defaults = OPS[node.op].attrs
        shown = {
            k: v
            for k, v in node.attrs.items()
            if isinstance(v, Graph) or v != defaults[k] or type(v) is not type(defaults[k])
        }
        types = ", ".join(str(v.type) for v in node.outputs)
        tail = f" : {types}" + (f" {json.dumps(node.name)}" if node.name else "")
        head = f"{indent}{results} = {node.op}({operands})"
        bodies = dict(subgraphs(node))
        if not bodies:
            attrs = ", ".join(f"{k}={_attr(v)}" for k, v in shown.items())
            return [head + (f" {{{attrs}}}" if attrs else "") + tail]
        lines = [head + " {"]
        for i, (key, value) in enumerate(shown.items()):
            comma = "," if i + 1 < len(shown) else ""
            if isinstance(value, Graph):
                inner = self._graph_lines(value, indent + "  ")
                inner[0] = f"{indent}  {key}={inner[0].lstrip()}"
                inner[-1] += comma
                lines += inner
            else:
                lines.append(f"{indent}  {key}={_attr(value)}{comma}")
        return [*lines, f"{indent}}}{tail}"]

    def _operand(self, value: Value, names: dict[Value, str]) -> str:
        if value in names:
            return names[value]
        if not isinstance(value, Constant):
            return f"%<undefined {value.name}>"
        if value in self._weight_names:
            return f"@{_name(self._weight_names[value])}"
        elements = ", ".join(_scalar(x) for x in value.data.reshape(-1).tolist())
        return f"{elements if value.type.rank == 0 else f'[{elements}]'}: {value.type}"


def _all_constants(graph: Graph) -> Iterator[Constant]:
    yield from graph.constants
    for node in graph.nodes:
        for _, body in subgraphs(node):
            yield from _all_constants(body)


def _unique(name: str, taken: dict[str, Constant] | dict[str, Value]) -> str:
    candidate, n = name, 0
    while candidate in taken:
        n += 1
        candidate = f"{name}.{n}"
    return candidate


def _name(name: str) -> str:
    return name if _PLAIN.fullmatch(name) or name.isdigit() else json.dumps(name)


def _scalar(value: bool | int | float) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _attr(value: Attr) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        return "(" + ", ".join(_attr(v) for v in value) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, DimExpr):
        return f"`{value}`"
    if isinstance(value, Graph):
        raise TypeError("graphs are printed by the node printer")
    return _scalar(value)
