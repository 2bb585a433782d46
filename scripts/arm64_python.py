"""Put Debian's Python and TVM for 64-bit ARM into a folder, with a `python` that runs them under qemu.

    python scripts/arm64_python.py
    python scripts/arm64_python.py --peers    # ONNX Runtime, ncnn, MNN and LiteRT too

Tests of `tcomp tune --runner rpc://...` start TVM's RPC server with it, in place of a board, and
`count_arm_peers.py` other runtimes. It takes qemu-aarch64, apt-get of a Debian system, dpkg-deb, and 130 MB
from the network, 75 MB more with `--peers`; nothing is installed.
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
PEERS = ("onnxruntime==1.32.0", "ncnn==1.0.20261020", "MNN==3.6.1", "ai-edge-litert==2.3.0")
PLATFORMS = (
    "manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64",
    "any",
)  # fmt: skip
PROGRAM = """#!/bin/sh
here=$(dirname "$(realpath "$0")")
export PYTHONHOME="$here/root/usr" PYTHONPATH="$here/site"
libraries="$here/root/usr/lib/aarch64-linux-gnu:$here/root/lib/aarch64-linux-gnu"
exec qemu-aarch64 -L "$here/root" -E LD_LIBRARY_PATH="$libraries" "$here/root/usr/bin/python%s" "$@"
"""
CORE = {
    "proc/cpuinfo": """processor	: 0
BogoMIPS	: 50.00
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x4
CPU part	: 0xd0b
CPU revision	: 0

""",
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
    "sys/devices/system/cpu/online": "0\n",
    "sys/devices/system/cpu/kernel_max": "255\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2000000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_min_freq": "2000000\n",
    "sys/devices/system/cpu/cpu0/topology/cluster_cpus_list": "0\n",
    "sys/devices/system/cpu/cpu0/topology/physical_package_id": "0\n",
    "sys/devices/system/cpu/cpu0/cache/index2/level": "2\n",
    "sys/devices/system/cpu/cpu0/cache/index2/size": "512K\n",
    "sys/devices/system/cpu/cpu0/cache/index2/shared_cpu_list": "0\n",
}
"""What a system of one Cortex-A76 says of it. Programs that read it below `-L` choose their code for that
core; from what this system says of its own they take none, or crash."""
START = """import sys
from pathlib import Path

sys.executable = str(Path(__file__).parents[1] / "python")  # what starts other processes
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"default {FOLDER}")
    parser.add_argument("--peers", action="store_true", help="other runtimes too")
    arguments = parser.parse_args(argv)
    folder = arguments.folder
    missing = [name for name in ("apt-get", "dpkg-deb", "qemu-aarch64") if shutil.which(name) is None]
    if missing:
        print(f"{', '.join(missing)} not found: this needs a Debian system with qemu-user", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        _unpack_debian(Path(name), folder / "root")
        _unpack_wheels(Path(name), folder / "site", [*WHEELS, *(PEERS if arguments.peers else ())])
    for name, text in CORE.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
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


def _unpack_wheels(work: Path, site: Path, wheels: Sequence[str]) -> None:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["-q", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--dest", work]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *platforms, *wheels], check=True)
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


if __name__ == "__main__":
    sys.exit(main())
