"""The instructions that a GPU gets, by nvdisasm."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest


def disassembled(image: bytes, folder: Path) -> str:
    """The text of a cubin; the test is skipped where there is no nvdisasm."""
    disassembler = shutil.which("nvdisasm")
    if disassembler is None:
        pytest.skip("no nvdisasm: install it from the CUDA toolkit or PyPI's nvidia-cuda-nvdisasm")
    path = folder / "kernel.cubin"
    path.write_bytes(image)
    return subprocess.run([disassembler, "-c", path], capture_output=True, text=True, check=True).stdout


def loop_bodies(assembly: str) -> list[Counter[str]]:
    """How many instructions of each name every loop has, by the text of nvdisasm."""
    bodies: list[Counter[str]] = []
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)(.*);", line):
            instructions.append(found[1])
            jump = re.search(r"`\((\.L_x_\d+)\)", found[2]) if found[1] == "BRA" else None
            if jump and labels.get(jump[1], len(instructions)) < len(instructions) - 1:
                bodies.append(Counter(instructions[labels[jump[1]] :]))
    return bodies
