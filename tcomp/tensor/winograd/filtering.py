"""Winograd's minimal filtering: `outputs` sums of three products each, with `outputs + 2` multiplications.

In two dimensions, a 3x3 convolution of a patch d of (m + 2) x (m + 2) inputs gives m x m outputs

    Y = A^T [(G g G^T) * (B^T d B)] A        (* elementwise, g the 3x3 kernel)

with (m + 2)^2 products for each pair of channels instead of 9 m^2: 4/9 of them for m = 2, 1/4 for m = 4. Rows
and columns may have different m, and m = 1 is the sum of three products: F(2, 3) of the rows alone takes 2/3
of the products and 4/3 of the weights.

With strides of 2, outputs are a sum over the even inputs, of two products each, and one product of an odd
input: F(2, 2) of the even ones makes it 5 products for two outputs instead of 6.
The matrices are those of Toom and Cook (Winograd, "Arithmetic complexity of computations",
1980; Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015): the polynomials of input
and kernel are evaluated at `outputs + 1` points and at infinity.

The points decide the rounding error. They are 0 and pairs +-p, so that the two transforms of a pair share
their even and odd parts. For F(4, 3), +-sqrt(1/2) and +-sqrt(2) have a fifth of the error of the customary
+-1 and +-2 (Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution", 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np

from tcomp.relay.types import Array

Expression = Any
Keep = Callable[[Expression], Expression]
"""Gives a value a place, so that using it twice does not compute it twice."""

KERNEL = 3
PAIRS: dict[int, tuple[float, ...]] = {2: (1.0,), 4: (sqrt(0.5), sqrt(2.0))}
"""By number of outputs, the positive point of each pair."""
ERRORS: dict[int, float] = {2: 2e-6, 4: 5e-6}
"""Largest error of a whole 3x3 convolution in float32, relative to the output's largest magnitude, for
random inputs and weights and up to 512 channels. F(6, 3) has 1e-5 to 3e-5 with the best points known."""


@dataclass(frozen=True)
class Winograd:
    """The transforms of F(outputs, 3) along one axis, in float64.

    `output` is A^T [outputs, size], `weight` is G [size, 3], `input` is B^T [size, size].
    """

    outputs: int
    output: Array
    weight: Array
    input: Array
    stride: int = 1

    @property
    def size(self) -> int:
        """Inputs that one application reads, and its multiplications."""
        return self.stride * (self.outputs - 1) + KERNEL

    @property
    def pairs(self) -> range:
        """The first of each pair of rows that belong to points +p and -p."""
        return range(1, self.size - 1, 2)

    def transform_input(self, x: Sequence[Expression], keep: Keep) -> list[Expression]:
        """`B^T x`, from `size` values to as many; 4 and 12 additions or fused multiply-adds."""
        results = [_scaled(*_combination(self.input[0], x))]
        for row in self.pairs:
            even_scale, even = _combination(_parity(self.input[row], 0), x)
            odd_scale, odd = _combination(_parity(self.input[row], 1), x)
            even, odd = keep(_scaled(even_scale, even)), keep(odd)
            results += [_plus(even, odd_scale, odd), _plus(even, -odd_scale, odd)]
        return [*results, _scaled(*_combination(self.input[-1], x))]

    def transform_output(self, x: Sequence[Expression], keep: Keep) -> list[Expression]:
        """`A^T x`, from `size` values to `outputs`."""
        sums = [keep(x[j] + x[j + 1]) for j in self.pairs]
        differences = [keep(x[j] - x[j + 1]) for j in self.pairs]
        results: list[Expression] = []
        for i, row in enumerate(self.output):
            terms = dict(zip(self.pairs, differences if i % 2 else sums, strict=True))
            ends = {j: x[j] for j in (0, self.size - 1)}
            values = {**terms, **ends}
            kept = [j for j in range(self.size) if j in values]
            results.append(_scaled(*_combination([row[j] for j in kept], [values[j] for j in kept])))
        return results


class _Direct(Winograd):
    """One output: the sum of three products."""

    def transform_input(self, x: Sequence[Expression], keep: Keep) -> list[Expression]:
        return list(x)

    def transform_output(self, x: Sequence[Expression], keep: Keep) -> list[Expression]:
        first, second, third = x
        return [first + second + third]


class _Strided(Winograd):
    """Two outputs of stride 2: F(2, 2) of points 0, 1 and infinity for the even inputs, and the odd ones."""

    def transform_input(self, x: Sequence[Expression], keep: Keep) -> list[Expression]:
        return [x[0] - x[2], x[2], x[2] - x[4], x[1], x[3]]

    def transform_output(self, x: Sequence[Expression], keep: Keep) -> list[Expression]:
        return [x[0] + x[1] + x[3], x[1] - x[2] + x[4]]


@dataclass(frozen=True)
class Scheme:
    """F(m, 3) along the columns of an image (`down`), and another one along its rows (`across`)."""

    down: Winograd
    across: Winograd

    @staticmethod
    def of(outputs: tuple[int, int], strides: tuple[int, int] = (1, 1)) -> Scheme:
        """Raises KeyError for an axis without an algorithm of so many outputs and such a stride."""
        return Scheme(winograd(outputs[0], strides[0]), winograd(outputs[1], strides[1]))

    @property
    def positions(self) -> int:
        """Products of a tile for each pair of channels."""
        return self.down.size * self.across.size

    @property
    def weight_transform(self) -> Array:
        """What makes `G g G^T` of the 9 weights of a kernel: [positions, 9], in float64."""
        both: Array = np.einsum("ai,bj->abij", self.down.weight, self.across.weight)
        return both.reshape(self.positions, KERNEL**2)

    def transform_weights(self, weights: Array) -> Array:
        """`G g G^T` of weights [9, n], rows being positions of the kernel: [positions, n], in float64."""
        return np.matmul(self.weight_transform, weights.astype(np.float64))


OUTPUTS: dict[int, tuple[int, ...]] = {1: (1, *PAIRS), 2: (1, 2)}
"""By stride."""


@lru_cache
def winograd(outputs: int, stride: int = 1) -> Winograd:
    """F(outputs, 3), for the numbers of `OUTPUTS`.

    Raises KeyError for another stride, or another number.
    """
    if outputs == 1 and stride in OUTPUTS:
        return _Direct(1, np.ones((1, KERNEL)), np.eye(KERNEL), np.eye(KERNEL), stride)
    if (outputs, stride) == (2, 2):
        data = np.array(
            [[1, 0, -1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, -1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]
        )
        weight = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0]])
        return _Strided(2, np.array([[1, 1, 0, 1, 0], [0, 1, -1, 0, 1]]), weight, data, stride)
    if stride != 1:
        raise KeyError(f"F({outputs}, 3) of stride {stride}")
    points = np.array([0.0, *(sign * p for p in PAIRS[outputs] for sign in (1, -1))])
    size = outputs + KERNEL - 1
    output, weight, data = np.zeros((outputs, size)), np.zeros((size, KERNEL)), np.zeros((size, size))
    for j, point in enumerate(points):
        others = np.delete(points, j)
        output[:, j] = point ** np.arange(outputs)
        weight[j] = point ** np.arange(KERNEL) / np.prod(point - others)
        data[j, :-1] = _polynomial(others)
    output[-1, -1] = weight[-1, -1] = 1.0
    data[-1] = _polynomial(points)
    return Winograd(outputs, output, weight, data)


def _polynomial(roots: Array) -> Array:
    """Coefficients by ascending power; those that are zero but for rounding are zero."""
    coefficients: Array = np.ones(1)
    for root in roots:
        coefficients = np.convolve(coefficients, np.array([-root, 1.0]))
    return np.round(coefficients, 14) + 0.0


def _parity(row: Array, parity: int) -> Array:
    """`row` with zeros at all places but the even (0) or odd (1) ones."""
    return np.where(np.arange(len(row)) % 2 == parity, row, 0.0)


def _combination(coefficients: Array | Sequence[float], x: Sequence[Expression]) -> tuple[float, Expression]:
    """`scale` and `value` with `scale * value = sum(coefficients * x)`, its last term having the factor 1."""
    terms = [(float(c), v) for c, v in zip(coefficients, x, strict=True) if c]
    ones = [i for i, (c, _) in enumerate(terms) if c == 1.0]
    scale, total = terms.pop(ones[-1] if ones else len(terms) - 1)
    for coefficient, value in terms:
        total = _plus(total, coefficient / scale, value)
    return scale, total


def _scaled(scale: float, value: Expression) -> Expression:
    return value if scale == 1.0 else value * np.float32(scale).item()


def _plus(total: Expression, factor: float, value: Expression) -> Expression:
    """`total + factor * value`."""
    if factor == 1.0:
        return total + value
    if factor == -1.0:
        return total - value
    return total + value * np.float32(factor).item()
