"""What the emulated GPU runs a real one is asked, too: which tests `--real-gpu` chooses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FILES = (
    "test_pixel_copies.py",
    "test_on_gpu.py",
    "test_matmul_wgmma.py",
    "test_rpc_gpu.py",
    "test_sharing_on_gpu.py",
)


def chosen(*options: str) -> list[str]:
    files = [Path(__file__).with_name(name) for name in FILES]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", *options, *files]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.rpartition("/")[2] for line in said.splitlines() if "::" in line]


@pytest.mark.slow
def test_what_the_emulated_gpu_runs_is_chosen_for_a_real_one() -> None:
    """Instructions first; not what is about the emulated GPU alone, or needs none."""
    alone, with_others = chosen(), chosen("--real-gpu")
    assert {name.partition("::")[0] for name in alone} == {"test_on_gpu.py"}
    assert set(alone) < set(with_others)
    assert with_others[0].startswith("test_pixel_copies.py::test_pixels_are_copied")
    assert "test_matmul_wgmma.py::test_numbers[two blocks share columns]" in with_others
    about_emulation = ("engine_cannot_do", "test_rpc_gpu", "test_sharing_on_gpu")
    assert not any(part in name for part in about_emulation for name in with_others)
