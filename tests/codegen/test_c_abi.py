"""What LLVM is told of a target: cores that it knows, and their features."""

from __future__ import annotations

import pytest

from tcomp.codegen.c_abi import needed_features
from tcomp.errors import TargetError
from tcomp.target.parse import parse_target
from tcomp.target.target import TARGETS, Target


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.gpu is None], ids=lambda t: t.name)
def test_llvm_knows_the_core_of_every_target(target: Target) -> None:
    assert needed_features(target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tag": "cortex-a76", "mcpu": "cortex-a79"}', "`cortex-a79` for aarch64-.*; did you mean .*-a78"),
        ('{"tag": "cortex-a76", "mcpu": "znver4"}', "`znver4` for aarch64-.*; one of a64fx, "),
        ('{"tag": "armv7-linux", "mcpu": "cortex-x2"}', "`cortex-x2` for armv7a-.*; did you mean "),
    ],
)
def test_cores_that_llvm_does_not_know_are_refused(text: str, message: str) -> None:
    """It would write code for any core in their place."""
    with pytest.raises(TargetError, match=f"LLVM knows no `mcpu` {message}"):
        needed_features(parse_target(text))


def test_a_core_with_sve_that_has_no_tag_is_used_without() -> None:
    """Nobody said the length of its vectors, which code would be for."""
    found = needed_features(parse_target('{"tag": "arm64-linux", "mcpu": "cortex-x4"}'))
    assert "bf16" in found
    assert not [name for name in found if name.startswith("sve")]
