"""Any contraction, reduction or window on GPUs: each thread computes one element of the output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

from tcomp.target.target import Target
from tcomp.tensor.gpu.rates import LAUNCH_CYCLES, memory_cycles, multiply_adds
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
    local,
    loop_nest,
    loops_around,
    sequence,
)
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.reduction_nest import Reduction, is_reduction
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import Tensor, te, tirx

_SLOWER = 8
"""Times as long as what hardware allows: each operand comes from a cache, and only one element a thread."""


class DirectCuda(Template):
    """Steps: inline everything into each output, sums of products as loops; number its elements as they lie
    in memory; give each thread one.

    Every operator that is an expression of its operands has such a kernel. Sums that are read at many places,
    as those of a softmax, are computed anew at each.
    """

    name = "direct_cuda"
    family = "cuda"
    priority = -5

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        outputs = lower_body(kernel, placeholders(kernel))
        return all(isinstance(t.op, (te.ComputeOp, te.PlaceholderOp)) for t in _operands(outputs))

    def space(self, kernel: Kernel, target: Target) -> Space:
        return Space((Ordered("threads", (64, 128, 256, 512), 128),))

    def estimate(self, kernel: Kernel, target: Target) -> float:
        assert target.gpu is not None
        computing = kernel.flops / (2 * target.gpu.processors * multiply_adds(target.gpu, 4))
        moving = memory_cycles(target.gpu, kernel.nbytes)
        return _SLOWER * max(computing, moving) + LAUNCH_CYCLES

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        inputs = placeholders(kernel)
        outputs = lower_body(kernel, inputs)
        input_buffers, output_buffers = buffers_of(inputs, "input"), buffers_of(outputs, "output")
        buffers = TensorMap(zip(inputs, input_buffers, strict=True))
        launches = [
            spread(
                prod(int(d) for d in tensor.shape),
                int(config["threads"]),
                partial(_store, tensor, output, buffers),
            )
            for tensor, output in zip(outputs, output_buffers, strict=True)
        ]
        return Scheduled(function([*input_buffers, *output_buffers], sequence(launches)))


def _store(tensor: Tensor, output: Buffer, buffers: TensorMap, number: Expression) -> Statement:
    index = digits(number, [int(d) for d in tensor.shape])
    return SummingElements(buffers, loops_around()).store(output, tensor, index)


class SummingElements(Elements):
    """Elements of tensors, those that reduce among them: a loop before the statement that needs one."""

    def element(self, tensor: Tensor, indices: Sequence[Expression]) -> Expression:
        if not is_reduction(tensor) or tensor in self._rows:
            return super().element(tensor, indices)
        reduction = Reduction(tensor)
        allocate, sum_ = local((1,), str(tensor.dtype), tensor.op.name)

        def step(at: list[Expression]) -> Statement:
            inner = SummingElements(self._buffers, loops_around())
            value = reduction.source(inner, tuple(indices), tuple(at))
            update = tirx.BufferStore(sum_, reduction.combine(sum_[0], value), [0])
            return sequence([*inner.statements, update])

        nest = loop_nest([range(extent) for extent in reduction.extents], step)
        self.statements += [allocate, tirx.BufferStore(sum_, reduction.identity, [0]), nest]
        return self._bound(sum_[0], tensor.op.name)


def _operands(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Every tensor that `outputs` need."""
    found = TensorMap((tensor, None) for tensor in outputs)
    pending = list(outputs)
    while pending:
        for tensor in pending.pop().op.input_tensors:
            if tensor not in found:
                found[tensor] = None
                pending.append(tensor)
    return list(found)


TEMPLATES.register(DirectCuda.name, DirectCuda())
