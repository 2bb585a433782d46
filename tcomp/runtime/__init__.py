"""Load and run compiled models. Imports neither TVM nor ONNX."""

from tcomp.runtime.library import TensorInfo
from tcomp.runtime.model import Model, StepTime, load

__all__ = ["Model", "StepTime", "TensorInfo", "load"]
