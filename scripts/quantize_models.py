"""Models in int8, as ONNX Runtime quantizes them: `python scripts/quantize_models.py mobilenetv2_100`.

    python scripts/models.py resnet18 mobilenetv2_100
    python scripts/quantize_models.py resnet18 mobilenetv2_100
    python scripts/count_arm.py models/resnet18_int8.onnx models/mobilenetv2_100_int8.onnx

Writes `models/NAME_int8.onnx`, with QuantizeLinear and DequantizeLinear around every operator: weights in
int8 with a scale for each output channel, activations in uint8, their ranges those of two random images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from models import ROOT
from tcomp.relay.types import Array


class Random(CalibrationDataReader):
    """Two random images."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        images = (np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i in range(2))
        self._images: Iterator[dict[str, Array]] = ({name: image} for image in images)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._images, None)


def quantize(source: Path, output: Path) -> None:
    """Write the quantized form of `source`, a model that takes one image of a fixed size."""
    (entry,) = onnx.load(source).graph.input
    shape = tuple(d.dim_value for d in entry.type.tensor_type.shape.dim)
    quantize_static(
        source,
        output,
        Random(entry.name, shape),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names of models in models/ that take one image")
    onnxruntime.set_default_logger_severity(3)
    for name in parser.parse_args().models:
        output = ROOT / "models" / f"{name}_int8.onnx"
        quantize(ROOT / "models" / f"{name}.onnx", output)
        print(output)


if __name__ == "__main__":
    main()
