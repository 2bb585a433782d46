"""Random inputs for a kernel, its reference outputs, and how a candidate's numbers compare with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, sqrt

import numpy as np

from tcomp.relay.evaluate import evaluate
from tcomp.relay.types import FLOAT8, REALS, Array, TensorType, dtype_of, numpy_dtype
from tcomp.tensor.float8 import FORMATS, Float8
from tcomp.tensor.kernel import Kernel
from tcomp.tuner.records import Check

_EPSILON = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "tf32": 2.0**-10,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float8_e4m3fn": 2.0**-13,
    "float8_e5m2": 2.0**-13,
}
"""Of products and their sums: tensor cores keep sums of float8 products in as few bits as this. DeepSeek-AI,
"DeepSeek-V3 Technical Report", 2024, section 3.3.2."""
# Winograd and vector polynomials lose a few digits against summation in order; a missing or repeated
# term of a reduction of length K shows as 1 / sqrt(K), far above these floors.
_FLOOR = {
    "float64": 1e-11, "float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2,
    "float8_e4m3fn": 1e-2, "float8_e5m2": 1e-2,
}  # fmt: skip
_HUGE_ERROR = 1e30


@dataclass(frozen=True)
class TrialData:
    """Inputs of a kernel and what it must compute from them."""

    inputs: tuple[Array, ...]
    expected: tuple[Array, ...]
    tolerance: float

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.inputs, *self.expected))


def trial_data(kernel: Kernel, seed: int) -> TrialData:
    """Random inputs from `seed` and the outputs of the numpy evaluator."""
    rng = np.random.default_rng(seed)
    length = reduction_length(kernel)
    largest_index = _largest_index(kernel)
    inputs = tuple(
        _random(rng, v.type, 1.0 / sqrt(length) if i in kernel.constant_inputs else 1.0, largest_index)
        for i, v in enumerate(kernel.body.inputs)
    )
    expected = tuple(evaluate(kernel.body, inputs))
    return TrialData(inputs, expected, tolerance(kernel))


def reduction_length(kernel: Kernel) -> int:
    """How many products are summed into one output element, estimated from the operation counts."""
    outputs = sum(v.type.nbytes // numpy_dtype(v.dtype).itemsize for v in kernel.body.outputs)
    return max(1, kernel.flops // max(1, 2 * outputs))


def tolerance(kernel: Kernel) -> float:
    """Allowed error relative to an output's scale, from the coarsest float type and the reduction length."""
    values = [*kernel.body.inputs, *(v for n in kernel.body.nodes for v in n.outputs)]
    floats = [v.dtype for v in values if v.dtype in REALS]
    floats += [str(n.attrs["multiply_as"]) for n in kernel.body.nodes if n.attrs.get("multiply_as")]
    if not floats:
        return 0.0
    length = isqrt(reduction_length(kernel))
    return max(max(_FLOOR[dtype], 4 * _EPSILON[dtype] * length) for dtype in floats)


def compare(data: TrialData, outputs: Sequence[Array]) -> Check:
    """The largest error of `outputs`, relative to the scale of each expected output."""
    errors = [_error(e, o, data.tolerance) for e, o in zip(data.expected, outputs, strict=True)]
    return Check(min(max(errors, default=0.0), _HUGE_ERROR), data.tolerance)


def is_wrong(check: Check) -> bool:
    return check.max_error > check.tolerance


def _error(expected: Array, output: Array, allowed: float) -> float:
    if expected.shape != output.shape or expected.dtype != output.dtype:
        return _HUGE_ERROR
    if expected.size == 0:
        return 0.0
    if expected.dtype.name not in REALS:
        difference = np.abs(expected.astype(np.float64) - output.astype(np.float64)).max()
        # Rounding to 8 bits after float arithmetic may fall on the other side.
        rounds = expected.dtype.itemsize == 1 and expected.dtype != np.bool_ and allowed > 0
        return 0.0 if difference <= (1.0 if rounds else 0.0) else float(difference)
    exact = np.result_type(expected.dtype, np.float32)
    wanted, found = expected.astype(exact, copy=False), output.astype(exact, copy=False)
    if dtype_of(expected) in FLOAT8:
        found = _without_a_step(wanted, found, FORMATS[dtype_of(expected)])
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(wanted - found).max()
    if not np.isfinite(error):
        return _error_beside_infinities(wanted, found)
    return float(error) / _scale(wanted)


def _without_a_step(wanted: Array, found: Array, form: Float8) -> Array:
    """`found`, nearer to `wanted` by the distance of neighbours of a narrow type, to which both were rounded.

    Rounding after float arithmetic may fall on the other side.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        step = np.abs(wanted) * 2.0**-form.mantissa + form.least
        near = np.clip(wanted, found - step, found + step)
    return np.where(np.isfinite(wanted) & np.isfinite(found), near, found)


def _error_beside_infinities(wanted: Array, found: Array) -> float:
    """As `_error`: infinities and NaN must be where they are expected, the rest may differ."""
    finite = np.isfinite(wanted)
    if (
        not np.array_equal(wanted[~finite], found[~finite], equal_nan=True)
        or not np.isfinite(found[finite]).all()
    ):
        return _HUGE_ERROR
    if not finite.any():
        return 0.0
    return float(np.abs(wanted[finite] - found[finite]).max()) / _scale(wanted[finite])


def _scale(values: Array) -> float:
    """The root mean square."""
    return max(float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))), 1e-30)


def _random(rng: np.random.Generator, type_: TensorType, scale: float, largest_index: int) -> Array:
    shape, dtype = type_.static_shape, numpy_dtype(type_.dtype)
    if type_.dtype in REALS:
        return ((rng.random(shape, dtype=np.float32) * 2 - 1) * scale).astype(dtype)
    if type_.dtype == "bool":
        return rng.random(shape) < 0.5
    if type_.dtype in ("int8", "uint8"):
        bounds = np.iinfo(dtype)
        return rng.integers(bounds.min, bounds.max, shape, dtype=dtype, endpoint=True)
    return rng.integers(0, largest_index, shape, dtype=dtype, endpoint=True)


def _largest_index(kernel: Kernel) -> int:
    """A value that indexes every axis: wide integers may be indices of a gather."""
    extents = [d for v in kernel.body.inputs for d in v.type.static_shape]
    return min([16, *(d - 1 for d in extents if d > 1)])
