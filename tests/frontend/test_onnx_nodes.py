"""ONNX's own node tests: import, evaluate in numpy, compare with the expected outputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests
from onnx_cases import PARAMETERS, PASSING, reason_to_exclude

from tcomp.errors import TcompError, UnsupportedError
from tcomp.frontend.onnx import import_onnx
from tcomp.frontend.onnx.tensors import read_tensor
from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import BITS

# Half-precision results may differ in the last bits: the expected ones round after every small step.
HALF_TOLERANCE = {"float16": 2.0**-9, "bfloat16": 2.0**-6}


def cases() -> Iterator[Any]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield from load_model_tests(kind="node")


def as_array(data: Any) -> np.ndarray:
    if isinstance(data, onnx.TensorProto):
        return read_tensor(data, None, f"data `{data.name}`")
    if not isinstance(data, np.ndarray | np.generic):
        raise UnsupportedError(f"data is a {type(data).__name__}, not a tensor")
    return np.asarray(data)


def fixed_inputs(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs that some operator needs at compile time."""
    operands = [
        node.input[position]
        for node in model.graph.node
        for position in PARAMETERS.get(node.op_type, ())
        if position < len(node.input)
    ]
    return {name: arrays[name] for name in operands if name in arrays}


def failure_of(case: Any) -> str | None:
    """What is wrong with the results of one case, or None."""
    names = [value.name for value in case.model.graph.input]
    for data_inputs, data_outputs in case.data_sets:
        arrays = dict(zip(names, map(as_array, data_inputs), strict=True))
        constants = fixed_inputs(case.model, arrays)
        graph = import_onnx(case.model, constants=constants)
        results = evaluate(graph, {n: a for n, a in arrays.items() if n not in constants})
        for value, result, data in zip(graph.outputs, results, data_outputs, strict=True):
            problem = difference(result, as_array(data), case)
            if problem is not None:
                return f"output `{value.name}`: {problem}"
    return None


def difference(result: np.ndarray, expected: np.ndarray, case: Any) -> str | None:
    if result.dtype != expected.dtype or result.shape != expected.shape:
        return f"{result.dtype}{result.shape}, expected {expected.dtype}{expected.shape}"
    tolerance = max(case.rtol, HALF_TOLERANCE.get(expected.dtype.name, 0.0))
    if result.dtype.name in BITS:
        result, expected = result.astype(np.float32), expected.astype(np.float32)
    try:
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=max(case.atol, 1e-7))
    except AssertionError as error:
        return " ".join(str(error).split())[:200]
    return None


@pytest.mark.slow
def test_node_tests() -> None:
    """Every node test passes unless its operator is excluded, with a reason, in `onnx_cases`."""
    failures: list[str] = []
    excluded: list[str] = []
    passed = 0
    for case in cases():
        reason = reason_to_exclude(case)
        if reason is not None:
            excluded.append(case.name)
            continue
        try:
            problem = failure_of(case)
        except TcompError as error:
            problem = str(error)
        if problem is None:
            passed += 1
        else:
            failures.append(f"{case.name}: {problem}")
    print(f"{passed} node tests pass, {len(excluded)} are excluded, {len(failures)} fail")
    assert not failures, "\n" + "\n".join(failures)
    assert passed >= PASSING
