"""What NVIDIA's compiler says of every kernel of every model."""

from __future__ import annotations

import pytest
from zoo import MODELS, model_path

from tcomp import api
from tcomp.codegen.jit import build_kernel
from tcomp.errors import BuildError
from tcomp.target.parse import parse_target
from tcomp.transform.precision import Precision
from tcomp.tuner.task import kernels


@pytest.mark.zoo
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("precision", ["exact", "tf32", "fast"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("real_compiler")
def test_no_default_spills(name: str, precision: Precision, arch: str) -> None:
    target = parse_target(f"cuda:{arch}")
    graph = api.load_model(model_path(name), MODELS[name].input_shapes)
    refused: list[str] = []
    for kernel, _ in kernels(api.static_kernels(graph, target, precision)):
        try:
            build_kernel(kernel, target).require_no_spills()
        except BuildError as error:
            refused.append(f"{kernel.label}: {error}")
    assert not refused
