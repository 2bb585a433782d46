"""What a library says of itself: read without loading it, for any machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_models import chain

from tcomp.cli import main
from tcomp.cli._options import size_text
from tcomp.codegen.artifact import compile_graph
from tcomp.errors import ArtifactError, BuildError
from tcomp.runtime import load
from tcomp.runtime.description import Description, describe
from tcomp.runtime.library import TensorInfo
from tcomp.target.host import host_target
from tcomp.target.parse import parse_target

X = np.zeros((4, 32), np.float32)


def compiled(target: str, folder: Path, weights: str = "embed") -> Path:
    path = folder / "chain.so"
    try:
        compile_graph(chain(), parse_target(target), path, weights=weights)  # pyright: ignore
    except BuildError as error:
        if "no linker" not in str(error):
            raise
        pytest.skip(str(error))
    return path


def test_description_keeps_everything() -> None:
    tensors = (TensorInfo("ein gang", (1, 2), "bfloat16"), TensorInfo("s", (), "bool"))
    about = Description("m", "t", "i", ("a",), tensors, (), 1, 2, False, ("x (y)",), {"kernel0_x": 3})
    assert Description.from_json(json.loads(json.dumps(about.to_json()))) == about


@pytest.mark.parametrize("weights", ["embed", "separate"])
def test_is_what_the_loaded_library_says(tmp_path: Path, weights: str) -> None:
    path = compiled("llvm", tmp_path, weights)
    artifact, model = describe(path), load(path)
    about = artifact.description
    assert (about.inputs, about.outputs, about.name) == (model.inputs, model.outputs, model.name)
    assert (about.arena_bytes, about.weights_bytes) == (model.arena_bytes, model.weights_bytes)
    assert f"{about.target} {about.isa}" == model.target
    assert about.weights_embedded == (weights == "embed")
    assert [step.label for step in model.profile(X)] == list(about.steps)
    assert (artifact.sizes.weights > 0) == (weights == "embed")


@pytest.mark.parametrize("target", ["llvm", "arm64-linux", "armv7-linux"])
def test_sizes_add_up_and_are_those_of_the_symbols(target: str, tmp_path: Path) -> None:
    path = compiled(target, tmp_path)
    sizes = describe(path).sizes
    assert sizes.file == path.stat().st_size == sizes.code + sizes.rest + sizes.weights
    assert 0 < sizes.kernels < sizes.code
    assert min(sizes.runtime, sizes.rest) > 0
    symbols = subprocess.run(["nm", "-n", "--defined-only", path], capture_output=True, text=True, check=True)
    code = [line.split() for line in symbols.stdout.splitlines() if line.split()[1] in "tT"]
    starts = {name: int(address, 16) for address, _, name in code if not name.startswith("$")}
    kernels = describe(path).description.kernels
    if not starts.keys() & kernels.keys():
        pytest.skip("zig's linker keeps no names of functions")
    for symbol, nbytes in kernels.items():
        after = [start for name, start in starts.items() if start > starts[symbol]]
        assert nbytes <= min(after, default=1 << 62) - starts[symbol] < nbytes + 64, symbol


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(compiled("llvm", tmp_path))
    assert main(["inspect", path]) == 0
    text = capsys.readouterr().out
    assert "input     x: float32[4,32]\n" in text
    assert host_target().isa in text
    assert f"context   {size_text(load(path).arena_bytes)} each, and workspaces of kernels\n" in text
    assert "shared" not in text
    assert main(["inspect", path, "--size"]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line]
    kernels = [int(n.replace(",", "")) for n, name in rows if name.startswith("kernel")]
    assert kernels == sorted(kernels, reverse=True)
    total = {name: int(n.replace(",", "")) for n, name in rows}
    assert sum(kernels) == total[f"code of {len(kernels)} kernels"]
    assert total["file"] == Path(path).stat().st_size
    assert main(["inspect", path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sizes"]["file"] == total["file"]
    assert facts["inputs"] == [{"name": "x", "shape": [4, 32], "dtype": "float32"}]


def test_refuses_what_is_no_whole_artifact(tmp_path: Path) -> None:
    path = compiled("llvm", tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged"):
        describe(path)
