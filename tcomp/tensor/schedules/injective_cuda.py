"""Elementwise and movement kernels on GPUs: a launch for each output, a few elements a thread."""

from __future__ import annotations

from math import prod

from tcomp.target.target import Target
from tcomp.tensor.access import access_of, whole
from tcomp.tensor.alignment import VECTOR_TYPES
from tcomp.tensor.gpu.threads import digits, spread
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
    loops_around,
    sequence,
    vectorized,
)
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import Tensor


class InjectiveCuda(Template):
    """Steps: inline everything into each output; number its elements as they lie in memory; give each thread
    `vector` neighbours, in one access where all operands lie alike.
    """

    name = "injective_cuda"
    family = "cuda"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return kernel.anchor is None

    def space(self, kernel: Kernel, target: Target) -> Space:
        return Space((Ordered("threads", (64, 128, 256, 512, 1024), 256), Ordered("vector", (1, 2, 4), 4)))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        inputs = placeholders(kernel)
        outputs = lower_body(kernel, inputs)
        input_buffers, output_buffers = buffers_of(inputs, "input"), buffers_of(outputs, "output")
        buffers = TensorMap(zip(inputs, input_buffers, strict=True))
        launches = [
            _launch(tensor, output, buffers, int(config["threads"]), int(config["vector"]))
            for tensor, output in zip(outputs, output_buffers, strict=True)
        ]
        return Scheduled(function([*input_buffers, *output_buffers], sequence(launches)))


def _launch(tensor: Tensor, output: Buffer, buffers: TensorMap, threads: int, vector: int) -> Statement:
    shape = [int(d) for d in tensor.shape]
    access = access_of(tensor, buffers, whole(tensor))
    groups = access.merged()
    extents = [prod(access.shape[axis] for axis in group) for group in groups]
    wide = all(str(t.dtype) in VECTOR_TYPES for t in (tensor, *buffers))
    lanes = vector if wide and len(extents) == 1 and extents[0] % vector == 0 else 1

    def point(number: Expression) -> Statement:
        def store(lane: Expression) -> Statement:
            index = digits(number * lanes + lane, shape)
            return Elements(buffers, loops_around()).store(output, tensor, index)

        return vectorized(lanes, store)

    return spread(prod(shape) // lanes, threads, point)


TEMPLATES.register(InjectiveCuda.name, InjectiveCuda())
