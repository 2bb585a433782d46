"""Vectorised functions: error bounds over dense samples, special values, no calls left in vector code."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from runnable import WIDEST

from tcomp.codegen.jit import build_kernel, build_scheduled
from tcomp.codegen.kernel_runner import KernelRunner
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.op import OPS
from tcomp.target.target import TARGETS, Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.math import exp2
from tcomp.tensor.selection import schedule
from tcomp.tvm_api import structural_map, tvm

SPECIAL = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 1e-45, 3e38, -3e38], "float32")
SAMPLES = np.concatenate(
    [np.linspace(-110, 88, 40001), np.linspace(-10, 10, 40001), np.linspace(-1, 1, 4001), SPECIAL]
).astype("float32")
# operator -> greatest relative error, greatest absolute error: a result may use either
BOUNDS = {
    "exp": (1.3e-7, 1e-44),
    "log": (1.3e-7, 1e-9),
    "tanh": (4e-7, 0.0),
    "erf": (4e-7, 5e-44),
    "sigmoid": (4e-7, 1e-37),
    "sin": (2e-7, 2e-7),
    "cos": (2e-7, 2e-7),
    "asin": (3e-7, 0.0),
    "acos": (3e-7, 4e-7),
    "atan": (3e-7, 0.0),
    "sinh": (1e-6, 1e-44),
    "cosh": (5e-7, 0.0),
    "asinh": (1e-6, 1e-44),
    "acosh": (2e-6, 0.0),
    "atanh": (1e-6, 1e-44),
}


def unary_kernel(name: str, size: int, target: Target = WIDEST) -> KernelRunner:
    builder = GraphBuilder()
    graph = builder.build(builder.op(name, builder.input("x", (size,))))
    return build_kernel(Kernel(graph), target)


@pytest.mark.parametrize("name", BOUNDS)
def test_error_is_within_the_stated_bound(name: str) -> None:
    limit = {"sin": 1e8, "cos": 1e8, "sinh": 88.7, "cosh": 88.7}.get(name, np.inf)
    x = SAMPLES[~(np.abs(SAMPLES) > limit)]
    (got,) = unary_kernel(name, x.size)([x])
    with np.errstate(all="ignore"):
        exact = np.asarray(OPS[name].evaluate([x.astype("float64")], {})[0])
        rounded = exact.astype("float32")
    assert np.array_equal(np.isnan(got), np.isnan(rounded))
    finite = np.isfinite(rounded)
    assert np.array_equal(got[~finite & ~np.isnan(rounded)], rounded[~finite & ~np.isnan(rounded)])
    relative, absolute = BOUNDS[name]
    error = np.abs(got[finite].astype("float64") - exact[finite])
    worst = np.argmax(error - relative * np.abs(exact[finite]))
    assert np.all(error <= relative * np.abs(exact[finite]) + absolute), (x[finite][worst], error[worst])


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "erf", "sigmoid", "sin", "gelu", "mish", "softplus"])
def test_vector_code_makes_no_calls(name: str) -> None:
    source = unary_kernel(name, 1024, TARGETS["x86-64-v4"]).source("ll")
    body = source[source.index("_internal_kernel") :] if "_internal_kernel" in source else source
    assert "<16 x float>" in body
    assert not re.findall(r"call [^\n]*@(?:expf?|logf?|log1pf?|tanhf?|erff?|sinf?|cosf?)\(", source)
    assert not re.findall(r"call <\d+ x float> @llvm\.(?:exp|log|tanh|sin|cos)", source)


def test_powers_of_two_are_within_the_stated_bound() -> None:
    builder = GraphBuilder()
    x = np.concatenate([np.linspace(-140, 127, 100_001), np.linspace(-2, 2, 40_001), [-np.inf, np.nan]])
    x = x.astype("float32")
    graph = builder.build(builder.op("exp", builder.input("x", (x.size,))))
    scheduled = schedule(Kernel(graph), WIDEST)

    def on_call(call: Any) -> Any:
        return exp2(call.args[0]) if call.op.name == "tirx.exp" else call

    body = structural_map(scheduled.function.body, (tvm.ir.Call, on_call))
    changed = replace(scheduled, function=scheduled.function.with_body(body))
    (got,) = build_scheduled(Kernel(graph), changed, WIDEST)([x])
    exact = 2 ** np.maximum(x.astype("float64"), -126)
    assert np.isnan(got[-1])
    assert np.all(np.abs(got - exact)[:-1] <= 3 * np.spacing(exact.astype("float32"))[:-1])
