"""The memory of a real model in a C program: what the plan says, and no more after a thousand runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from c_programs import check_memory
from zoo import CompiledModel


@pytest.mark.slow
def test_mobilenet(compiled: Callable[..., CompiledModel]) -> None:
    check_memory(compiled("mobilenetv2_100").report, 1000)
