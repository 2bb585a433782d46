"""A plugin of pytest: the process of a test that broke a GPU's context ends, as what follows would fail, and
that of a test whose kernel does not end.

`gpu_check.py` runs the tests marked `gpu` with it, in processes of pytest-xdist, which replaces them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from typing import Any

import pytest

from tcomp.errors import TcompError

STICKY = tuple(f"(CUDA error {code})" for code in (700, 702, *range(714, 720)))
"""Illegal addresses and instructions, time limits, failures of hardware. Source: CUDA Driver API reference,
CUresult."""
_broken: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--test-seconds", type=float, default=60.0, help="in which a test must end (default 60)")


def _is_replaced() -> bool:
    """Whether another process follows this one when it ends."""
    return "PYTEST_XDIST_WORKER" in os.environ


def is_sticky(error: BaseException) -> bool:
    """Whether nothing more runs in this process: libraries raise ArtifactError, kernels KernelError."""
    return isinstance(error, TcompError) and any(code in str(error) for code in STICKY)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    if not _is_replaced():
        return (yield)
    timer = threading.Timer(item.config.option.test_seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    if call.excinfo is not None and is_sticky(call.excinfo.value):
        _broken.add(item.nodeid)
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    if nodeid in _broken and _is_replaced():
        os._exit(1)
