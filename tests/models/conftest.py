"""Real models, compiled once for all tests that run them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from zoo import MODELS, CompiledModel, model_path

import tcomp
from tcomp.transform.precision import Precision


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CompiledModel]:
    """Compile a model of `models/` with every default, for the shapes that its entry names."""
    done: dict[tuple[str, Precision, str], CompiledModel] = {}

    def get(name: str, precision: Precision = "exact", target: str = "llvm") -> CompiledModel:
        if (name, precision, target) not in done:
            source = model_path(name)
            output = tmp_path_factory.mktemp("compiled") / f"{name}.so"
            shapes = MODELS[name].input_shapes
            result = tcomp.compile(source, output, target, input_shapes=shapes, precision=precision)
            done[name, precision, target] = CompiledModel(result.report, tcomp.load(output), result.precision)
        return done[name, precision, target]

    return get
