"""Translate an ONNX graph into a Relay graph, node by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Union

import numpy as np
import numpy.typing as npt
import onnx

from tcomp.errors import ModelError, TcompError, UnsupportedError
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import find_converter
from tcomp.frontend.onnx.inputs import input_types
from tcomp.frontend.onnx.model import LoadedModel, ModelSource, check_model, first_line, load_model
from tcomp.frontend.onnx.tensors import attribute_value, read_tensor
from tcomp.relay.builder import graph_of, make_node
from tcomp.relay.graph import Constant, Graph, Value
from tcomp.relay.types import Array, TensorType

NODES_NAMED = 3  # of each unsupported operator
Failure = tuple[str, str, str]  # operator, node name, reason ("" = no converter)


class _Broken:
    """Stands for the output of a node that could not be converted, so that all such nodes are reported."""


_BROKEN = _Broken()
Slot = Union[Value, None, _Broken]


def import_onnx(
    source: ModelSource,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, npt.ArrayLike] | None = None,
) -> Graph:
    """The Relay graph of an ONNX model (a path or a ModelProto).

    `input_shapes` gives shapes to inputs with dynamic dimensions; what stays dynamic becomes a symbol.
    `constants` fixes inputs to values known now, which removes them from the graph's inputs.
    Relay nodes carry the names of the ONNX nodes they come from; values carry ONNX's tensor names.
    Raises ModelError for a bad file or contradicting shapes, UnsupportedError with every operator
    that tcomp cannot translate.
    """
    model = load_model(source)
    try:
        _refuse_unknown_operators(model, model.proto.graph.node)
        check_model(model)
        return _Importer(model).run(input_shapes or {}, constants or {})
    except (ModelError, UnsupportedError) as error:
        message = str(error)
        prefix = "" if message.startswith(model.name) else f"{model.name}: "
        raise type(error)(prefix + message) from None
    except UnicodeDecodeError:
        raise ModelError(f"{model.name} is damaged: a text in it is not UTF-8; export it again") from None


class _Importer:
    """The state of one import: values by ONNX name, and nodes that failed."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.values: dict[str, Slot] = {}
        self.failures: list[Failure] = []
        self.context = Context(self._branch)

    def run(self, shapes: Mapping[str, Sequence[int]], constants: Mapping[str, npt.ArrayLike]) -> Graph:
        graph = self.model.proto.graph
        initializers = self._initializers(graph)
        inputs: list[Value] = []
        declared = [v for v in graph.input if v.name not in initializers]
        for name, tensor_type in input_types(declared, shapes).items():
            if name in constants:
                self.values[name] = _fixed_input(name, tensor_type, constants[name])
                continue
            inputs.append(Value(tensor_type, name))
            self.values[name] = inputs[-1]
        unknown = [name for name in constants if name not in self.values]
        if unknown:
            raise ModelError(f"`{unknown[0]}` is no input of the model, so it cannot be fixed to a value")
        self.values.update(initializers)
        self._convert_all(graph.node)
        outputs = self._outputs(graph.output)
        if self.failures:
            raise UnsupportedError(_report(self.failures))
        names = _names(self.values, dict(zip((v.name for v in graph.output), outputs, strict=True)))
        return _named(graph_of(inputs, outputs, self.context.nodes, graph.name or "main"), names)

    def _initializers(self, graph: onnx.GraphProto) -> dict[str, Value]:
        if graph.sparse_initializer:
            raise UnsupportedError("it has sparse initializers; store them dense")
        folder = self.model.folder
        return {
            t.name: Constant.of(read_tensor(t, folder, f"initializer `{t.name}`"), t.name)
            for t in graph.initializer
        }

    def _convert_all(self, protos: Iterable[onnx.NodeProto]) -> None:
        for proto in protos:
            operands = [self._lookup(proto, name) for name in proto.input]
            results: Sequence[Slot] = [_BROKEN] * len(proto.output)
            if not any(isinstance(v, _Broken) for v in operands):
                results = self._convert(proto, [v for v in operands if not isinstance(v, _Broken)])
            for name, value in zip(proto.output, results, strict=False):
                if name:
                    self.values[name] = value

    def _lookup(self, proto: onnx.NodeProto, name: str) -> Slot:
        if not name:
            return None
        if name not in self.values:
            raise ModelError(f"node `{_node_name(proto)}` reads `{name}`, which nothing before it makes")
        return self.values[name]

    def _convert(self, proto: onnx.NodeProto, operands: Sequence[Value | None]) -> Sequence[Slot]:
        """The outputs of one node; a node that cannot be translated is noted and its outputs broken."""
        opset = self.model.opsets.get("" if proto.domain == "ai.onnx" else proto.domain, 1)
        convert = find_converter(proto.domain, proto.op_type, opset)
        name = _node_name(proto)
        where = f"{proto.op_type} node `{name}`"
        if convert is None:
            self.failures.append((_operator(proto), name, ""))
            return [_BROKEN] * len(proto.output)
        self.context.node_name = name
        try:
            attrs = {a.name: attribute_value(a, self.model.folder) for a in proto.attribute}
            node = OnnxNode(proto.op_type, name, opset, tuple(operands), attrs, tuple(proto.output))
            results = convert(self.context, node)
        except UnsupportedError as error:
            self.failures.append((_operator(proto), name, str(error)))
            return [_BROKEN] * len(proto.output)
        except TcompError as error:
            raise ModelError(f"{where}: {error}") from None
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ModelError(f"{where} cannot be translated: {first_line(error)}") from error
        return [results] if isinstance(results, Value) else list(results)

    def _branch(self, graph: onnx.GraphProto) -> list[Value]:
        """Convert a subgraph in place; it sees the values of the graphs around it."""
        name = self.context.node_name
        _refuse_unknown_operators(self.model, graph.node)
        self.values.update(self._initializers(graph))
        self._convert_all(graph.node)
        outputs = [self.values[v.name] for v in graph.output]
        self.context.node_name = name
        if any(isinstance(v, _Broken) for v in outputs):
            raise UnsupportedError("its branch contains nodes that cannot be translated")
        return [v for v in outputs if isinstance(v, Value)]

    def _outputs(self, protos: Iterable[onnx.ValueInfoProto]) -> list[Value]:
        """The graph's outputs, each a value of its own: an alias of an input or output gets a node."""
        produced = {v for node in self.context.nodes for v in node.outputs}
        outputs: list[Value] = []
        for proto in protos:
            value = self.values.get(proto.name)
            if value is None:
                raise ModelError(f"output `{proto.name}` is made by no node")
            if isinstance(value, _Broken):
                continue
            if isinstance(value, Constant):
                value = Constant.of(value.data, proto.name)
            elif value not in produced or value in outputs:
                copy = make_node("reshape", [value], {"shape": value.shape}, proto.name)
                self.context.nodes.append(copy)
                value = copy.output
            self.values[proto.name] = value
            outputs.append(value)
        return outputs


def _refuse_unknown_operators(model: LoadedModel, nodes: Iterable[onnx.NodeProto]) -> None:
    """Raise UnsupportedError listing every operator among `nodes` that has no converter."""
    failures: list[Failure] = []
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if find_converter(domain, node.op_type, model.opsets.get(domain, 1)) is None:
            failures.append((_operator(node), _node_name(node), ""))
    if failures:
        raise UnsupportedError(_report(failures))


def _report(failures: Sequence[Failure]) -> str:
    """`LSTM (2 nodes: a, b), Resize (1 node: r: reason)` in one line."""
    counts = Counter((operator, reason) for operator, _, reason in failures)
    parts: list[str] = []
    for (operator, reason), count in counts.items():
        names = [name for o, name, r in failures if (o, r) == (operator, reason)]
        shown = ", ".join(f"`{name}`" for name in names[:NODES_NAMED])
        more = ", ..." if count > NODES_NAMED else ""
        nodes = "1 node" if count == 1 else f"{count} nodes"
        parts.append(f"{operator} ({nodes}: {shown}{more})" + (f": {reason}" if reason else ""))
    return "cannot translate " + "; ".join(parts)


def _fixed_input(name: str, declared: TensorType, data: npt.ArrayLike) -> Constant:
    constant = Constant.of(_as_array(data), name)
    given = constant.type
    matches = (
        given.dtype == declared.dtype
        and given.rank == declared.rank
        and all(a == b or not isinstance(a, int) for a, b in zip(declared.shape, given.shape, strict=True))
    )
    if not matches:
        raise ModelError(f"input `{name}` is {declared}; it cannot be fixed to a value of type {given}")
    return constant


def _as_array(data: npt.ArrayLike) -> Array:
    return np.asarray(data)


def _node_name(proto: onnx.NodeProto) -> str:
    """The node's name, or its first output's."""
    return proto.name or next((name for name in proto.output if name), proto.op_type)


def _operator(proto: onnx.NodeProto) -> str:
    return f"{proto.domain}::{proto.op_type}" if proto.domain else proto.op_type


def _names(values: Mapping[str, Slot], outputs: Mapping[str, Value]) -> dict[Value, str]:
    """One ONNX name for each value: the graph output's, else the first."""
    names = {value: name for name, value in outputs.items()}
    for name, value in values.items():
        if isinstance(value, Value):
            names.setdefault(value, name)
    return names


def _named(graph: Graph, names: Mapping[Value, str]) -> Graph:
    """`graph` with every value called as in the ONNX model."""
    renamed: dict[Value, Value] = {v: v for v in graph.inputs}

    def rename(value: Value) -> Value:
        if value not in renamed:
            name = names.get(value, value.name)
            renamed[value] = value if name == value.name else replace(value, name=name)
        return renamed[value]

    nodes = tuple(
        replace(node, inputs=tuple(map(rename, node.inputs)), outputs=tuple(map(rename, node.outputs)))
        for node in graph.nodes
    )
    return Graph(graph.inputs, nodes, tuple(map(rename, graph.outputs)), graph.name)
