"""Fixtures of the tuner's tests: the host as target, options under which fake kernels are measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tcomp.target.host import host_target
from tcomp.target.target import Target
from tcomp.tuner.measure import MeasureOptions

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def target() -> Target:
    return host_target()


@pytest.fixture
def options() -> MeasureOptions:
    return MeasureOptions(plugins=("fake_template",), trial_seconds=4, memory_limit=640 << 20)
