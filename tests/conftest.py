"""Settings for every test: hypothesis without deadlines (machines vary in speed), `zoo` tests on request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from rpc_servers import Servers, Tracker
from shared_folders import SharedFolder, shared_folders

settings.register_profile("tcomp", deadline=None, max_examples=100)
settings.load_profile("tcomp")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", default="0:8", help="those of tests on random kernels, FIRST:END")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel_seed" in metafunc.fixturenames:
        first, end = map(int, metafunc.config.getoption("seeds").split(":"))
        metafunc.parametrize("kernel_seed", range(first, end))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The models that only `-m zoo` runs take many minutes: without it they are deselected."""
    if "zoo" in config.option.markexpr:
        return
    zoo = [item for item in items if item.get_closest_marker("zoo") is not None]
    if zoo:
        config.hook.pytest_deselected(items=zoo)
        items[:] = [item for item in items if item not in zoo]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> SharedFolder:
    return shared_folders(tmp_path_factory, hasattr(request.config, "workerinput"))


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    running = Tracker(tmp_path_factory.mktemp("tracker"))
    yield running
    running.close()


@pytest.fixture
def servers(tracker: Tracker, tmp_path: Path) -> Iterator[Servers]:
    """None yet, of a tracker that knows of no others."""
    running = Servers(tracker, tmp_path)
    yield running
    running.close()
