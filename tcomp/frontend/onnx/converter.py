"""How a converter is declared and found: by ONNX domain, operator and the opset it is valid from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.registry import Registry
from tcomp.relay.graph import Value

Converter = Callable[[Context, OnnxNode], Union[Value, Sequence[Value]]]
"""Translates one ONNX node: returns its outputs in order (a single Value for one output)."""

CONVERTERS: Registry[Converter] = Registry("ONNX converter", "tcomp.frontend.onnx.converters")
STANDARD_DOMAINS = ("", "ai.onnx")


def converter(*op_types: str, since: int = 1, domain: str = "") -> Callable[[Converter], Converter]:
    """Register a converter of `op_types` for opsets from `since` on, until a newer one takes over."""

    def register(function: Converter) -> Converter:
        for op_type in op_types:
            CONVERTERS.register(_key(domain, op_type, since), function)
        return function

    return register


def find_converter(domain: str, op_type: str, opset: int) -> Converter | None:
    """The newest converter that is not newer than `opset`."""
    domain = "" if domain in STANDARD_DOMAINS else domain
    for version in range(opset, 0, -1):
        key = _key(domain, op_type, version)
        if key in CONVERTERS:
            return CONVERTERS[key]
    return None


def _key(domain: str, op_type: str, since: int) -> str:
    return f"{domain or 'onnx'}.{op_type}-{since}"
