"""How a converter is declared and found: by ONNX domain, operator and the opset it is valid from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import onnx

from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.registry import Registry
from tcomp.relay.graph import Value

Converter = Callable[[Context, OnnxNode], Union[Value, Sequence[Value]]]
"""Translates one ONNX node: returns its outputs in order (a single Value for one output)."""

CONVERTERS: Registry[Converter] = Registry("ONNX converter", "tcomp.frontend.onnx.converters")
Takes = Callable[[onnx.NodeProto], bool]
CONDITIONS: Registry[Takes] = Registry("condition of an ONNX converter", "tcomp.frontend.onnx.converters")
"""Which nodes a converter takes, where these are not all of its operator; others are the functions of simpler
operators that the standard has them as."""
STANDARD_DOMAINS = ("", "ai.onnx")


def converter(
    *op_types: str, since: int = 1, domain: str = "", takes: Takes | None = None
) -> Callable[[Converter], Converter]:
    """Register a converter of `op_types` for opsets from `since` on, until a newer one takes over."""

    def register(function: Converter) -> Converter:
        for op_type in op_types:
            CONVERTERS.register(_key(domain, op_type, since), function)
            if takes is not None:
                CONDITIONS.register(_key(domain, op_type, since), takes)
        return function

    return register


def find_converter(domain: str, op_type: str, opset: int) -> Converter | None:
    """The newest converter that is not newer than `opset`."""
    key = _newest(domain, op_type, opset)
    return None if key is None else CONVERTERS[key]


def is_taken(node: onnx.NodeProto, opset: int) -> bool:
    """Whether `node` has a converter."""
    key = _newest(node.domain, node.op_type, opset)
    return key is not None and (key not in CONDITIONS or CONDITIONS[key](node))


def _newest(domain: str, op_type: str, opset: int) -> str | None:
    domain = "" if domain in STANDARD_DOMAINS else domain
    keys = (_key(domain, op_type, version) for version in range(opset, 0, -1))
    return next((key for key in keys if key in CONVERTERS), None)


def _key(domain: str, op_type: str, since: int) -> str:
    return f"{domain or 'onnx'}.{op_type}-{since}"
