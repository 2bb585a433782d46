"""What libraries say of drivers that lack functions."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import tcomp.codegen

C = Path(tcomp.codegen.__file__).parent / "c"
MAIN = """
#include <stdio.h>
#include "cuda_driver.h"
int main(int count, char **arguments) {
  (void)arguments;
  const char *problem = tcomp_cuda_load(count > 1);
  puts(problem ? problem : "loaded");
}
"""


def names() -> list[str]:
    return re.findall(r'F\(\w+, "(\w+)"', (C / "cuda_driver.h").read_text())


@pytest.mark.parametrize(
    ("missing", "needs_maps", "answer"),
    [
        ("", True, "loaded"),
        ("cuTensorMapEncodeTiled", False, "loaded"),
        (
            "cuTensorMapEncodeTiled",
            True,
            "the NVIDIA driver has no cuTensorMapEncodeTiled; install a newer one",
        ),
        (
            "cuTensorMapEncodeIm2col",
            True,
            "the NVIDIA driver has no cuTensorMapEncodeIm2col; install a newer one",
        ),
        ("cuLaunchKernel", False, "the NVIDIA driver has no cuLaunchKernel; install a newer one"),
    ],
)
def test_what_is_missing_is_named(missing: str, needs_maps: bool, answer: str, tmp_path: Path) -> None:
    assert missing in ("", *names())
    library, main, program = (tmp_path / name for name in ("library.c", "main.c", "program"))
    library.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names() if name != missing))
    main.write_text(MAIN)
    subprocess.run(["gcc", "-shared", "-fPIC", library, "-o", tmp_path / "libcuda.so.1"], check=True)
    sources = [main, C / "cuda_driver.c"]
    subprocess.run(["gcc", f"-I{C}", *sources, "-o", program, "-ldl", "-lpthread"], check=True)
    run = [program, *["maps"] * needs_maps]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer
