"""The layers import downwards only, and heavy packages stay behind their doors."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "tcomp"
LAYERS = [
    {"errors", "files", "registry", "tvm_api"},
    {"target", "relay"},
    {"runtime"},
    {"tensor"},
    {"ops"},
    {"frontend", "transform"},
    {"plan"},
    {"codegen"},
    {"tuner"},
    {"accuracy", "api", "profiling", "rounding", "verification"},
    {"cli"},
]
# Siblings that may import each other: target facts are stated in terms of Relay's element types.
ALLOWED_SIBLINGS = {
    ("target", "relay"),
    ("api", "verification"),
    ("api", "accuracy"),
    ("verification", "accuracy"),
    ("accuracy", "rounding"),
    ("registry", "errors"),
}
TENSOR_LAYERS = [
    {"tensor"},
    {"cpu", "gpu"},
    {"tensor_cores"},
    {"attention", "strassen", "winograd"},
    {"schedules"},
]
"""Packages of `tcomp.tensor` from the bottom up; `tensor` is the folder's own modules."""
ABOVE_SCHEDULES = {"selection", "common_packing"}
OPTIONAL_HEAVY = {"onnx", "onnxruntime", "openvino", "torch", "xgboost"}
TENSOR = ROOT / "tensor"
FILES = sorted(ROOT.rglob("*.py"))


def layer_of(area: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if area in layer)


def area_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(tree: ast.AST) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    area = area_of(path)
    if area in ("__init__", "__main__"):
        return
    for name in imports_of(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] in ("tvm", "tvm_ffi"):
            assert area == "tvm_api", f"{path} imports {name}; only tvm_api may"
        if parts[0] != "tcomp" or len(parts) == 1 or parts[1] == area:
            continue
        lower = layer_of(parts[1]) < layer_of(area) or (area, parts[1]) in ALLOWED_SIBLINGS
        assert lower, f"{path} imports {name}, which is not below {area}"


@pytest.mark.parametrize("path", sorted(TENSOR.rglob("*.py")), ids=lambda p: str(p.relative_to(TENSOR)))
def test_packages_of_schedules_are_layers(path: Path) -> None:
    def package_of(parts: Sequence[str]) -> str:
        return parts[0] if any(parts[0] in layer for layer in TENSOR_LAYERS) else "tensor"

    parts = path.relative_to(TENSOR).with_suffix("").parts
    if parts[0] in ABOVE_SCHEDULES:
        return
    own = package_of(parts)
    level = next(i for i, layer in enumerate(TENSOR_LAYERS) if own in layer)
    below = set[str]().union(*TENSOR_LAYERS[:level], {own})
    for name in imports_of(ast.parse(path.read_text())):
        _, _, module = name.partition("tcomp.tensor.")
        if module:
            assert module.partition(".")[0] not in ABOVE_SCHEDULES, f"{path} imports {name}"
            assert package_of(module.split(".")) in below, f"{path} imports {name}, which is not below {own}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stand_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            inner = {name.split(".")[0] for name in imports_of(function)}
            assert inner <= OPTIONAL_HEAVY, (
                f"{path}: `{function.name}` imports {sorted(inner - OPTIONAL_HEAVY)}"
            )


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import tcomp", "import tcomp.runtime", "import tcomp.cli"])
def test_light_imports(statement: str) -> None:
    heavy = {"tvm", "onnx", "xgboost", "torch", "scipy"} & loaded_by(statement)
    assert not heavy


def test_tvm_is_imported_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    loaded = loaded_by(f"sys.path.insert(0, {str(tmp_path)!r}); import tcomp.tvm_api")
    assert "tvm" in loaded
    assert "torch" not in loaded


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_torch_stays_where_it_was_imported_before_or_is_after() -> None:
    assert "torch" in loaded_by("import torch, tcomp.tvm_api")
    assert "torch" in loaded_by("import tcomp.tvm_api, torch")
