"""Real models, compiled once for all tests that run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from zoo import MODELS, CompiledModel, model_path

import tcomp
from tcomp.relay.types import Array
from tcomp.transform.precision import Precision


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CompiledModel]:
    """Compile a model of `models/` with every default, for the shapes that its entry names.

    `inputs`, always the same for a model, are those that fewer bits are checked on.
    """
    done: dict[tuple[str, Precision, str], CompiledModel] = {}

    def get(
        name: str,
        precision: Precision = "exact",
        target: str = "llvm",
        inputs: Mapping[str, Array] | None = None,
    ) -> CompiledModel:
        if (name, precision, target) not in done:
            source = model_path(name)
            output = tmp_path_factory.mktemp("compiled") / f"{name}.so"
            options = {"input_shapes": MODELS[name].input_shapes, "precision": precision, "inputs": inputs}
            result = tcomp.compile(source, output, target, **options)
            done[name, precision, target] = CompiledModel(result.report, tcomp.load(output), result.precision)
        return done[name, precision, target]

    return get
