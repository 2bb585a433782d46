"""The documentation runs: its Python and shell blocks, page by page, in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LINKED = [ROOT / "README.md", ROOT / "tuning_logs" / "README.md", *sorted(DOCS.rglob("*.md"))]
RECIPES = sorted((DOCS / "recipes").glob("*.md"))
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def run_page(page: Path, folder: Path) -> None:
    """Python blocks of a page share their names; shell blocks run between them.

    One process runs all Python up to the next shell block.
    """
    python = ""
    blocks = groupby(BLOCK.findall(page.read_text(encoding="utf-8")), lambda block: block[0])
    for language, parts in blocks:
        text = "".join(part for _, part in parts)
        if language == "python":
            python += text
            (folder / "page.py").write_text(python)
            run([sys.executable, "page.py"], folder)
        else:
            for line in text.splitlines():
                run(shlex.split(line), folder)


@pytest.mark.parametrize("page", RECIPES, ids=lambda p: p.stem)
def test_recipe(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


@pytest.mark.slow
def test_tutorial(tmp_path: Path) -> None:
    run_page(DOCS / "tutorial.md", tmp_path)


def test_there_are_four_recipes() -> None:
    assert [p.stem for p in RECIPES] == [
        "add-a-pass",
        "add-a-schedule-template",
        "add-a-target",
        "add-an-operator",
    ]


def anchors_of(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for file, _, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#?)([^)\s]*)\)", page.read_text()):
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name} links {file}"
        assert not anchor or anchor in anchors_of(target), f"{page.name} links {file}#{anchor}"
