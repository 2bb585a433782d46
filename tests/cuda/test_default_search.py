"""What a default config costs: Python's calls, which are the same on every machine."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from gpu_check import Case, attention, conv, matmul
from tcomp.target.parse import parse_target
from tcomp.tensor.template import TEMPLATES, Template

H100 = parse_target("nvidia/h100")
CASES = (
    matmul(1, 4096, 4096, "float16"),
    matmul(128, 3072, 768, "float16"),
    matmul(8192, 8192, 8192, "float16"),
    conv(64, 64, 56, 3, 1, "float32", images=32),
    attention(16, 4096, 128, "float16"),
)


def calls_of(template: Template, case: Case) -> int:
    """Of functions in Python, until the default is known."""
    made = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal made
        made += event == "call"

    sys.setprofile(count)
    try:
        template.space(case.kernel, H100)
    finally:
        sys.setprofile(None)
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_found_once_a_problem_and_soon(case: Case) -> None:
    """A search among plans has tens of thousands of calls, none of them for each tile of an output."""
    accepting = [t for t in TEMPLATES.values() if t.family == "cuda" and t.accepts(case.kernel, H100)]
    assert len(accepting) > 2
    for template in accepting:
        assert calls_of(template, case) < 200_000, template.name
        assert calls_of(template, case) < 4_000, template.name
