"""Each pass turns its golden graphs into the recorded ones, and keeps their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden import cases, run

from tcomp.relay.evaluate import evaluate
from tcomp.relay.printer import print_graph
from tcomp.transform.pass_ import PASS_TYPES


@pytest.mark.parametrize("path", cases(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_pass_gives_the_recorded_graph_and_the_same_numbers(path: Path) -> None:
    case = run(path)
    assert print_graph(case.after) == case.expected, "rewrite with: python tests/transform/golden.py"
    rng = np.random.default_rng(0)
    inputs = [rng.random(v.type.static_shape).astype(v.dtype) for v in case.before.inputs]
    for before, after in zip(evaluate(case.before, inputs), evaluate(case.after, inputs), strict=True):
        tolerance = 2e-2 if path.parent.name in ("lower-precision", "round-factors") else 1e-4
        np.testing.assert_allclose(after, before, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", list(PASS_TYPES))
def test_every_pass_has_a_golden_folder(name: str) -> None:
    assert any(path.parent.name == name for path in cases())
