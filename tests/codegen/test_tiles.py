"""Libraries ask for tile registers where their kernels use them, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tcomp
from tcomp.api import optimize
from tcomp.errors import BuildError, TargetError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph
from tcomp.relay.types import numpy_dtype
from tcomp.target.parse import parse_target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import template_for
from tcomp.tuner.rpc_candidates import CpuCandidate
from tcomp.tuner.runner import Prepared
from tcomp.tuner.trial_data import trial_data

TARGET = "emeraldrapids"


def product(dtype: str) -> Graph:
    builder = GraphBuilder()
    weights = np.ones((64, 64)).astype(numpy_dtype(dtype))
    return builder.build(builder.op("matmul", builder.input("x", (32, 64), dtype), builder.constant(weights)))


@pytest.mark.parametrize(("dtype", "asks"), [("bfloat16", True), ("float32", False)])
def test_features_that_a_library_looks_for(dtype: str, asks: bool, tmp_path: Path) -> None:
    tcomp.compile(product(dtype), tmp_path / "m.so", target=TARGET)
    code = (tmp_path / "m.so").read_bytes()
    features = next(text for text in code.split(b"\0") if b"avx512f," in text)
    assert (b"amx-bf16" in features) == asks


def test_a_freestanding_model_has_none(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"use tiles.*-amx-tile"):
        tcomp.compile(product("bfloat16"), tmp_path / "m.o", target=TARGET, runtime="freestanding")
    tcomp.compile(product("float32"), tmp_path / "m.o", target=TARGET, runtime="freestanding")
    without = f'{{"tag": "{TARGET}", "mattr": ["-amx-tile"]}}'
    tcomp.compile(product("bfloat16"), tmp_path / "m.o", target=without, runtime="freestanding")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_servers_get_no_kernel_that_uses_them(dtype: str, tmp_path: Path) -> None:
    target = parse_target(TARGET)
    (kernel,) = (Kernel.of(n) for n in optimize(product(dtype), target).nodes if n.op == "fused")
    prepared = Prepared(kernel.key, kernel, target, trial_data(kernel, 0))
    config = template_for(kernel, target).space(kernel, target).default
    if dtype == "float32":
        CpuCandidate.build(prepared, config, tmp_path)
        return
    with pytest.raises(TargetError, match=r"uses tiles.*-amx-tile"):
        CpuCandidate.build(prepared, config, tmp_path)
