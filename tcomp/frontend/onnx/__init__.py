"""ONNX models to Relay graphs: `import_onnx(path)`.

One converter per ONNX operator (`converters/`, a file a family, found by being in the folder); everything
that all converters need is in `context.py`; files, validation and external data are in `model.py`.
"""

from tcomp.frontend.onnx.importer import import_onnx

__all__ = ["import_onnx"]
