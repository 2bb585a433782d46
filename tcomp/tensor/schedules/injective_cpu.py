"""Elementwise and movement kernels on CPUs: one vectorised nest for each output, nothing stored between."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import (
    Buffer,
    Elements,
    Expression,
    Statement,
    TensorMap,
    buffers_of,
    function,
    loop,
    parallel,
    sequence,
    vector_loop,
)
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import Tensor

_PARALLEL_BYTES = 1 << 16
"""Kernels that touch fewer bytes run on the calling thread: waking others costs more."""


class InjectiveCpu(Template):
    """Steps: inline everything into each output; merge loops that lie contiguous in every operand; share the
    outermost loop among threads; vectorise the innermost.
    """

    name = "injective_cpu"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return kernel.anchor is None

    def space(self, kernel: Kernel, target: Target) -> Space:
        return Space((Ordered("unroll", (1, 2, 4, 8), 4),))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        inputs = placeholders(kernel)
        outputs = lower_body(kernel, inputs)
        input_buffers, output_buffers = buffers_of(inputs, "input"), buffers_of(outputs, "output")
        buffers = TensorMap(zip(inputs, input_buffers, strict=True))
        threaded = kernel.nbytes >= _PARALLEL_BYTES
        nests = [
            _nest(tensor, buffer, buffers, target, int(config["unroll"]), threaded)
            for tensor, buffer in zip(outputs, output_buffers, strict=True)
        ]
        return Scheduled(function([*input_buffers, *output_buffers], sequence(nests)))


def _nest(
    tensor: Tensor,
    output: Buffer,
    buffers: TensorMap,
    target: Target,
    unroll: int,
    threaded: bool,
) -> Statement:
    shape = [int(d) for d in tensor.shape] or [1]

    def point(indices: Sequence[Expression]) -> Statement:
        return Elements(buffers).store(output, tensor, indices[: len(tensor.shape)])

    def nest(outer: tuple[Any, ...]) -> Statement:
        if len(outer) == len(shape) - 1:
            lanes = target.lanes(str(tensor.dtype))
            return sequence(vector_loop(shape[-1], lanes, unroll, lambda i: point([*outer, i])))
        extent = shape[len(outer)]
        make = parallel if threaded and not outer else loop
        return make(extent, lambda i: nest((*outer, i)))

    assert prod(shape)
    return nest(())


TEMPLATES.register(InjectiveCpu.name, InjectiveCpu())
