"""The house style that tools can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def check(*command: str) -> None:
    full = [sys.executable, "-m", *command]
    done = subprocess.run(full, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_ruff() -> None:
    check("ruff", "check", "tcomp", "tests", "scripts")
    check("ruff", "format", "--check", "tcomp", "tests", "scripts")


@pytest.mark.slow
def test_pyright_strict() -> None:
    check("pyright", "--pythonpath", sys.executable)


def test_every_file_of_the_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(r"^tcomp = (\[.*\])$", text, re.MULTILINE)
    matches = (path for pattern in ast.literal_eval(listed) for path in (ROOT / "tcomp").glob(pattern))
    packaged = {path for path in matches if path.is_file()}
    files = (p for p in (ROOT / "tcomp").rglob("*") if p.is_file())
    others = {p for p in files if p.suffix not in (".py", ".pyc")}
    assert others == packaged


def test_files_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("tcomp", "scripts", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 520
    }
    assert not long
