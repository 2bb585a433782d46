"""What the functions refuse before they begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_models import chain

import tcomp
from tcomp.errors import UsageError


@pytest.mark.parametrize("argument", ["weights", "form", "runtime", "precision"])
def test_a_word_that_no_argument_has(argument: str, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {argument: "elsewhere"}
    with pytest.raises(UsageError, match=f"^{argument} is `elsewhere`; it must be one of "):
        tcomp.compile(chain(), tmp_path / "m.so", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"^against is `abacus`; it must be one of onnxruntime, reference$"):
        tcomp.verify(chain(), against="abacus")


def test_onnxruntime_does_not_run_graphs() -> None:
    with pytest.raises(UsageError, match=r"^ONNX Runtime cannot run `graph chain`; use --against reference$"):
        tcomp.verify(chain())
