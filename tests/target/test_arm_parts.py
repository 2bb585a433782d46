"""Which code suits which ARM core."""

from __future__ import annotations

import pytest

from tcomp.target.arm import CORES
from tcomp.target.arm_parts import preferences, speed
from tcomp.target.parse import parse_targets
from tcomp.target.target import TARGETS

A35, A55, A510, A72, A76, A78, X4, V1, V2 = (
    0x41 << 12 | p for p in (0xD04, 0xD05, 0xD46, 0xD08, 0xD0B, 0xD41, 0xD82, 0xD40, 0xD4F)
)


def test_every_core_has_a_rank():
    assert sorted(speed(TARGETS[name]) for name in CORES) == list(range(len(CORES)))
    assert speed(TARGETS["arm64-linux"]) == -1


@pytest.mark.parametrize(
    ("targets", "core", "variant"),
    [
        ("cortex-a76,cortex-a55", A55, "cortex-a55"),
        ("cortex-a76,cortex-a55", A510, "cortex-a55"),
        ("cortex-a76,cortex-a55", A78, "cortex-a76"),
        ("cortex-a76,cortex-a55", A72, "cortex-a76"),  # no core out of order is slower
        ("cortex-a78,cortex-a72", A76, "cortex-a72"),  # not faster than the core, however near
        ("cortex-x2,cortex-a78", X4, "cortex-x2"),
        ("cortex-x2,cortex-a53", A35, "cortex-a53"),
        ("cortex-x2,cortex-a78", A55, "cortex-a78"),
        ("arm64-linux,cortex-a76", A55, "cortex-a76"),
        ("neoverse-v1,neoverse-v1-neon", V1, "neoverse-v1"),
        ("neoverse-v1,neoverse-v1-neon", V2, "neoverse-v1-neon"),
        ("neoverse-v1,neoverse-n1", V2, "neoverse-n1"),
    ],
)
def test_the_nearest_code_of_the_same_kind(targets: str, core: int, variant: str):
    found = parse_targets(targets)
    assert found[dict(preferences(found))[core]].variant == variant


def test_slow_cores_come_first():
    order = [core for core, _ in preferences(parse_targets("cortex-a55,cortex-a76"))]
    assert order.index(A35) < order.index(A55) < order.index(A76) < order.index(A78) < order.index(X4)


def test_code_for_no_core_in_particular_is_not_preferred():
    assert preferences(parse_targets("arm64-linux")) == []
    assert preferences(parse_targets("x86-64-v3,x86-64-v4")) == []
