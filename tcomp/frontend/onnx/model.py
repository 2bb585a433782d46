"""Read an ONNX file: parse, check, inline model-local functions. No conversion happens here."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Union

import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
from google.protobuf.message import DecodeError

from tcomp.errors import ModelError, UnsupportedError
from tcomp.frontend.onnx.converter import STANDARD_DOMAINS

OLDEST_OPSET = 7
PROTOBUF_LIMIT = 2**31 - 1

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
    opsets = _opsets(name, proto)
    if proto.functions:
        try:
            proto = onnx.inliner.inline_local_functions(proto)
        except Exception as error:  # the inliner raises plain RuntimeErrors
            raise ModelError(
                f"{name}: model-local functions cannot be inlined: {first_line(error)}"
            ) from None
    return LoadedModel(name, proto, folder, opsets)


def check_model(model: LoadedModel) -> None:
    """Run the official checker (structure, names, required attributes).

    Raises ModelError with the checker's first line. Models beyond protobuf's 2 GB are not checked: the
    checker works on the serialised bytes.
    """
    if model.proto.ByteSize() > PROTOBUF_LIMIT:
        return
    try:
        onnx.checker.check_model(_without_external_data(model.proto))
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{model.name} is not a valid ONNX model: {first_line(error)}") from None


def _without_external_data(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose external initializers are empty: the checker would look for them in the working folder."""
    if not any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    return copy


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
