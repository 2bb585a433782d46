"""Put Debian's Python and TVM for 64-bit ARM into a folder, with a `python` that runs them under qemu.

Tests of `tcomp tune --runner rpc://...` start TVM's RPC server with it, in place of a board. It takes
qemu-aarch64, apt-get of a Debian system, dpkg-deb, and 130 MB from the network; nothing is installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "build" / "arm64-python"
PYTHON = "3.11"
DEBIAN = (
    f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libc6",
    "libstdc++6", "libgcc-s1", "zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5",
    "libuuid1", "libsqlite3-0",
)  # fmt: skip
WHEELS = (
    "apache-tvm==0.27.0.post1", "apache-tvm-ffi==0.1.14.post1", "cloudpickle", "ml_dtypes", "numpy",
    "packaging", "psutil", "tornado", "typing_extensions",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "any")
PROGRAM = """#!/bin/sh
here=$(dirname "$(realpath "$0")")
export PYTHONHOME="$here/root/usr" PYTHONPATH="$here/site"
libraries="$here/root/usr/lib/aarch64-linux-gnu:$here/root/lib/aarch64-linux-gnu"
exec qemu-aarch64 -L "$here/root" -E LD_LIBRARY_PATH="$libraries" "$here/root/usr/bin/python%s" "$@"
"""
START = """import sys
from pathlib import Path

sys.executable = str(Path(__file__).parents[1] / "python")  # what starts other processes
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"default {FOLDER}")
    folder = parser.parse_args(argv).folder
    missing = [name for name in ("apt-get", "dpkg-deb", "qemu-aarch64") if shutil.which(name) is None]
    if missing:
        print(f"{', '.join(missing)} not found: this needs a Debian system with qemu-user", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        _unpack_debian(Path(name), folder / "root")
        _unpack_wheels(Path(name), folder / "site")
    (folder / "site" / "sitecustomize.py").write_text(START)
    program = folder / "python"
    program.write_text(PROGRAM % PYTHON)
    program.chmod(0o755)
    subprocess.run([program, "-c", "import tvm; print('tvm', tvm.__version__)"], check=True)
    return 0


def _unpack_debian(work: Path, root: Path) -> None:
    """Debian's packages for ARM, by lists of their own, so that those of this system stay as they are."""
    state, cache = work / "state", work / "cache"
    for place in (state / "lists" / "partial", cache / "archives" / "partial"):
        place.mkdir(parents=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": state,
        "Dir::State::status": state / "status", "Dir::Cache": cache,
    }  # fmt: skip
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *DEBIAN], cwd=work, check=True)
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)


def _unpack_wheels(work: Path, site: Path) -> None:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["-q", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--dest", work]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *platforms, *WHEELS], check=True)
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


if __name__ == "__main__":
    sys.exit(main())
