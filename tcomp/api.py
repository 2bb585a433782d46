"""What the command line does, as functions: load a model, optimise, tune, compile, verify, replay."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tcomp.errors import ModelError, UsageError
from tcomp.frontend.onnx import import_onnx
from tcomp.relay.graph import Graph
from tcomp.relay.parser import load_graph
from tcomp.relay.specialize import specialize

InputShapes = Mapping[str, Sequence[int]]


def load_model(model: str | Path | Graph, input_shapes: InputShapes | None = None) -> Graph:
    """The graph of a `.onnx` or `.relay` file, of `module:function` (called without arguments), or itself.

    `input_shapes` fix symbolic dimensions. Raises ModelError for a file that cannot be read, UsageError for
    a name that is none of these.
    """
    shapes = input_shapes or {}
    if isinstance(model, Graph):
        return specialize(model, shapes)
    path = Path(model)
    if path.suffix == ".onnx":
        return import_onnx(path, shapes)
    if path.suffix == ".relay":
        return specialize(load_graph(path), shapes)
    module, _, function = str(model).partition(":")
    if not function:
        raise UsageError(f"`{model}` is no model; give a .onnx or .relay file, or module:function")
    return specialize(_call(module, function), shapes)


def _call(module: str, function: str) -> Graph:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: a module beside the user
    try:
        graph = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"cannot call `{module}:{function}`: {error}") from error
    if not isinstance(graph, Graph):
        raise ModelError(f"`{module}:{function}` returned {type(graph).__name__}, not a tcomp graph")
    return graph
