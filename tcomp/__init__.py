"""tcomp: a tensor compiler with schedule autotuning.

    graph = tcomp.import_onnx("model.onnx", input_shapes={"x": (1, 3, 224, 224)})
    tcomp.tune(graph, log="model.jsonl", trials=64)
    tcomp.compile(graph, "model.so", logs=["model.jsonl"])
    outputs = tcomp.load("model.so")(x)

Names are imported when first used: loading an artifact needs neither TVM nor ONNX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcomp.api import compile, optimize, replay, tune, verify
    from tcomp.frontend.onnx import import_onnx
    from tcomp.relay.evaluate import evaluate
    from tcomp.runtime import load
    from tcomp.target.parse import parse_target

__version__ = "0.1.0"
__all__ = [
    "compile",
    "evaluate",
    "import_onnx",
    "load",
    "optimize",
    "parse_target",
    "replay",
    "tune",
    "verify",
]

_HOMES = {
    "compile": "tcomp.api",
    "evaluate": "tcomp.relay.evaluate",
    "import_onnx": "tcomp.frontend.onnx",
    "load": "tcomp.runtime",
    "optimize": "tcomp.api",
    "parse_target": "tcomp.target.parse",
    "replay": "tcomp.api",
    "tune": "tcomp.api",
    "verify": "tcomp.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `tcomp` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)
