"""Reductions, softmax and norms on CPUs: each row with vectors along it."""

from __future__ import annotations

from tcomp.relay.op import OPS, FusionKind
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Ordered, Space
from tcomp.tensor.loops import TensorMap, buffers_of, function
from tcomp.tensor.lower import lower_body, placeholders
from tcomp.tensor.reduction_nest import ReductionNest
from tcomp.tensor.row_space import RowSpace, row_space
from tcomp.tensor.template import TEMPLATES, Scheduled, Template

_PARALLEL_BYTES = 1 << 16
"""Kernels that touch fewer bytes run on the calling thread: waking others costs more."""


def reduction_space(kernel: Kernel) -> RowSpace | None:
    """The kernel's row space, if its anchor is a reduction and each output has its full or reduced shape."""
    anchor = kernel.anchor
    if anchor is None or OPS[anchor.op].kind is not FusionKind.REDUCTION:
        return None
    space = row_space(anchor)
    if space is None:
        return None
    shape = space.full_shape if space.reduced_shape is None else space.reduced_shape
    return space if all(v.type.static_shape == shape for v in kernel.body.outputs) else None


def reduction_nest(kernel: Kernel, target: Target, unroll: int, horizontal: bool) -> Scheduled:
    """The kernel as one nest over its rows."""
    space = reduction_space(kernel)
    assert space is not None
    inputs = placeholders(kernel)
    outputs = lower_body(kernel, inputs)
    input_buffers, output_buffers = buffers_of(inputs, "input"), buffers_of(outputs, "output")
    nest = ReductionNest(
        space,
        TensorMap(zip(outputs, output_buffers, strict=True)),
        TensorMap(zip(inputs, input_buffers, strict=True)),
        target.lanes() * (1 if horizontal else unroll),
        unroll,
        kernel.nbytes >= _PARALLEL_BYTES,
    )
    body = nest.horizontal() if horizontal else nest.vertical()
    return Scheduled(function([*input_buffers, *output_buffers], body))


class RowsCpu(Template):
    """Steps: share rows among threads; each reduction in vectors along the row with `unroll` accumulators,
    keeping what calls a function in a row buffer; write the outputs in a last loop.
    """

    name = "rows_cpu"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        space = reduction_space(kernel)
        return space is not None and space.innermost_is_column

    def space(self, kernel: Kernel, target: Target) -> Space:
        return Space((Ordered("unroll", (1, 2, 4, 8), 4),))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        return reduction_nest(kernel, target, int(config["unroll"]), horizontal=True)


TEMPLATES.register(RowsCpu.name, RowsCpu())
