"""The main job on a real model: tune, compile and run Magika, which names the type of a file from its bytes.

python scripts/models.py magika && python scripts/demo.py [FILE ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tcomp
from preprocessing import magika_features

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "magika.onnx"


def command(*arguments: str) -> None:
    print("$ tcomp " + " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "tcomp", *arguments], check=True)


def main() -> None:
    if not MODEL.exists():
        sys.exit(f"{MODEL} is not there; run `python scripts/models.py magika` first")
    labels = json.loads(MODEL.with_name("magika.config.json").read_text())["target_labels_space"]
    names = sys.argv[1:] or [
        "README.md",
        "pyproject.toml",
        "tcomp/codegen/c/pool.c",
        "tcomp/api.py",
        "LICENSE",
    ]
    shape = ("--input-shape", "bytes:1,2048")
    with tempfile.TemporaryDirectory() as folder:
        log, library = f"{folder}/magika.jsonl", f"{folder}/magika.so"
        command("tune", str(MODEL), *shape, "--log", log, "--trials", "150")
        command("compile", str(MODEL), *shape, "--log", log, "-o", library)
        model = tcomp.load(library)
        for name in names:
            (scores,) = model(magika_features((ROOT / name).read_bytes()))
            best = int(scores[0].argmax())
            print(f"{name:28} {labels[best]:12} {scores[0, best]:.3f}")


if __name__ == "__main__":
    main()
