"""Read an ONNX file: parse, check, inline model-local functions. No conversion happens here."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Union

import onnx
import onnx.checker
import onnx.defs
import onnx.helper
import onnx.inliner
import onnx.shape_inference
from google.protobuf.message import DecodeError

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.converter import STANDARD_DOMAINS, is_taken

OLDEST_OPSET = 7
FUNCTION_DEPTH = 4  # functions may be made of functions
_NOT_INLINED = ("BlackmanWindow", "HammingWindow", "HannWindow")  # the inliner drops their defaults
_INLINER_ERRORS = (
    RuntimeError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)

ModelSource = Union[str, "PathLike[str]", onnx.ModelProto]


@dataclass(frozen=True)
class LoadedModel:
    """A model with its functions inlined. `folder` is where its external data may lie."""

    name: str
    proto: onnx.ModelProto
    folder: Path | None
    opsets: dict[str, int]

    @property
    def opset(self) -> int:
        """Version of the standard operator set; 0 for a model that uses none."""
        return self.opsets.get("", 0)


def load_model(source: ModelSource) -> LoadedModel:
    """Read and validate a model.

    Raises ModelError for a file that is missing or no ONNX model, UnsupportedError for an opset outside
    7..newest of the installed `onnx`.
    """
    if isinstance(source, onnx.ModelProto):
        name, proto, folder = source.graph.name or "model", source, None
    else:
        path = Path(source)
        name, proto, folder = str(path), _parse(path), path.parent
    if not all(_is_text(node) for node in proto.graph.node):
        raise ModelError(f"{name} is damaged: a node has a name that is not UTF-8; export it again")
    opsets = _opsets(name, proto)
    return LoadedModel(name, _inlined(name, proto, opsets), folder, opsets)


def _is_text(node: onnx.NodeProto) -> bool:
    """Whether the node's names decode; protobuf looks at them when they are read, not when it parses."""
    try:
        return all(type(n) is str for n in (node.op_type, node.domain, node.name, *node.input, *node.output))
    except UnicodeDecodeError:
        return False


def _inlined(name: str, proto: onnx.ModelProto, opsets: dict[str, int]) -> onnx.ModelProto:
    """Replace calls of model-local functions, and standard operators that have no converter but are
    functions of simpler ones (RotaryEmbedding, losses), by their bodies.
    """
    if proto.functions:
        try:
            proto = onnx.inliner.inline_local_functions(proto)
        except _INLINER_ERRORS as error:
            raise ModelError(f"{name}: its functions cannot be inlined: {first_line(error)}") from None
    for _ in range(FUNCTION_DEPTH):
        composite = _composite_operators(proto.graph, opsets)
        if not composite:
            break
        try:
            proto = _expanded(proto, sorted(composite))
        except _INLINER_ERRORS:
            break  # reported as unsupported operators
    return proto


def _expanded(proto: onnx.ModelProto, composite: list[tuple[str, str]]) -> onnx.ModelProto:
    """`proto` with the bodies of the standard's functions in place of their calls.

    The inliner asks for the type of every operand, also of those left out, whose name is empty.
    """
    values = proto.graph.value_info
    values.append(onnx.helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, None))
    try:
        return onnx.inliner.inline_selected_functions(proto, composite, inline_schema_functions=True)
    finally:
        values.pop()


def _composite_operators(graph: onnx.GraphProto, opsets: dict[str, int]) -> set[tuple[str, str]]:
    """(domain, operator) of the nodes that have no converter but a function body in the standard."""
    found: set[tuple[str, str]] = set()
    for node in graph.node:
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        opset = opsets.get(domain, 1)
        if is_taken(node, opset) or node.op_type in _NOT_INLINED:
            continue
        try:
            schema: Any = onnx.defs.get_schema(  # onnx's stubs miss the two properties
                node.op_type, opset, domain
            )
        except onnx.defs.SchemaError:  # unknown, or newer than the model's opset
            continue
        if schema.has_function or schema.has_context_dependent_function:
            found.add((domain, node.op_type))
    return found


def check_model(model: LoadedModel) -> None:
    """Run the official checker (structure, names, required attributes).

    Raises ModelError with the checker's first line, UnsupportedError for weights that are stored sparse.
    """
    sparse = [tensor.values.name for tensor in model.proto.graph.sparse_initializer]
    if sparse:
        names = ", ".join(f"`{name}`" for name in sparse)
        raise UnsupportedError(
            f"{model.name}: sparse_initializer {names} cannot be read; store it as a plain initializer"
        )
    try:
        onnx.checker.check_model(_without_weights(model.proto))
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{model.name} is not a valid ONNX model: {first_line(error)}") from None


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with empty initializers: checking serialises the model, which takes seconds with weights,
    fails beyond 2 GB, and looks for external data in the working folder. Data is checked when it is read.
    """
    source = proto.graph
    graph = onnx.GraphProto(name=source.name or "main")
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    for value in (*graph.input, *graph.output):
        # The checker insists on shapes; here missing ones are inferred, or asked for.
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.shape.SetInParent()
    graph.initializer.extend(
        onnx.TensorProto(name=t.name, data_type=t.data_type, dims=[0]) for t in source.initializer
    )
    return onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=graph)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _parse(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load_model(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is not an ONNX model, or is cut short: {first_line(error)}") from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it has no graph or no opset; export it again")
    return proto


def _opsets(name: str, proto: onnx.ModelProto) -> dict[str, int]:
    opsets = {
        "" if entry.domain in STANDARD_DOMAINS else entry.domain: int(entry.version)
        for entry in proto.opset_import
    }
    newest = onnx.defs.onnx_opset_version()
    if "" in opsets and not OLDEST_OPSET <= opsets[""] <= newest:
        raise UnsupportedError(
            f"{name} has opset {opsets['']}; tcomp reads {OLDEST_OPSET} to {newest}: "
            "convert it with onnx.version_converter.convert_version, or export it again"
        )
    return opsets
