"""How large a phone's library is beside its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo import MODELS, model_path

import tcomp
from tcomp.codegen.toolchain import find_toolchain
from tcomp.errors import BuildError
from tcomp.runtime.description import describe
from tcomp.target.parse import parse_target


@pytest.mark.slow
@pytest.mark.parametrize("target", ["arm64-linux", "cortex-a76", "armv7-linux"])
def test_mobilenet_is_small(target: str, tmp_path: Path) -> None:
    try:
        find_toolchain(parse_target(target))
    except BuildError as error:
        pytest.skip(str(error))
    library, name = tmp_path / "model.so", "mobilenetv2_100"
    tcomp.compile(model_path(name), library, target, input_shapes=MODELS[name].input_shapes)
    assert describe(library).sizes.without_weights <= 300_000
