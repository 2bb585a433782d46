"""What scripts that need a GPU are asked for: what is wrong is said before anything is measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

import pytest

import gpu_check
import gpu_facts
from gpu_script import add_json, write_json
from tcomp.errors import DeviceError
from tcomp.target.target import TARGETS, Target

SCRIPTS = pytest.mark.parametrize("script", [gpu_check, gpu_facts], ids=["gpu_check", "gpu_facts"])


def h100() -> Target:
    return TARGETS["cuda:sm_90a"]


@SCRIPTS
def test_names_that_nothing_has_are_said(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "gpu_here", h100)
    monkeypatch.setattr(sys, "argv", ["script", "--select", "matmull"])
    with pytest.raises(SystemExit, match="nothing has `matmull` in its name; leave --select away"):
        script.main()


@SCRIPTS
def test_without_a_gpu_there_is_one_line(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(text: str) -> Target:
        raise DeviceError("no NVIDIA driver here")

    monkeypatch.setattr("gpu_script.parse_target", none)
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit, match=r"^no NVIDIA driver here$"):
        script.main()


def test_files_are_in_folders_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_json(parser)
    for wrong in (tmp_path, tmp_path / "none" / "facts.json"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--json", str(wrong)])
        assert f"`{wrong}` is no file in a folder that is there" in capsys.readouterr().err
    file = parser.parse_args(["--json", str(tmp_path / "facts.json")]).json
    for rows in ([1], [1, 2]):
        write_json(file, rows)
    assert file.read_text() == "[\n 1,\n 2\n]"
    assert list(tmp_path.iterdir()) == [file]
    write_json(None, [1])
