"""A schedule template for GPUs whose `behaviour` knob breaks off, hangs or computes nonsense.

It serves sigmoids of vectors of two lengths, of which no config of `TAME` ones is bad. Workers import it as
a plugin.
"""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.gpu.threads import spread
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.loops import (
    Expression,
    Statement,
    buffers_of,
    constant,
    function,
    local,
    loop,
    sequence,
)
from tcomp.tensor.lower import placeholders
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import tirx

TAME, FRAGILE = 1019, 1013
FAR = 1 << 40
"""So many elements away from a vector there is no memory."""
MANY = 1 << 30
"""So many times so many steps do not end."""


class FragileTemplate(Template):
    """A thread for each element, which adds it up in `steps` equal parts."""

    name = "fragile_cuda"
    family = "cuda"
    priority = 1000

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        shapes = [value.type.static_shape for value in kernel.body.inputs]
        return kernel.label == "sigmoid" and shapes in ([(TAME,)], [(FRAGILE,)])

    def space(self, kernel: Kernel, target: Target) -> Space:
        steps = Ordered("steps", tuple(range(1, 65)), default=1)
        is_tame = kernel.body.inputs[0].type.static_shape == (TAME,)
        behaviours = ("ok",) if is_tame else ("ok", "break", "hang", "wrong")
        return Space((steps, Choice("behaviour", behaviours, default="ok")))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        behaviour, steps = config["behaviour"], int(config["steps"])
        (x,) = buffers_of(placeholders(kernel), "x")
        (y,) = buffers_of(placeholders(kernel), "y")

        def thread(number: Expression) -> Statement:
            at = tirx.Cast("int64", number) + constant(FAR, "int64") if behaviour == "break" else number
            part = tirx.sigmoid(x[at]) * constant((2.0 if behaviour == "wrong" else 1.0) / steps, "float32")
            allocate, total = local((1,), "float32", "total")

            def add(_: Expression) -> Statement:
                return tirx.BufferStore(total, total[0] + part, [0])

            adding = loop(MANY, lambda _: loop(MANY, add)) if behaviour == "hang" else loop(steps, add)
            first = tirx.BufferStore(total, constant(0.0, "float32"), [0])
            return sequence([allocate, first, adding, tirx.BufferStore(y, total[0], [number])])

        return Scheduled(function([x, y], spread(int(x.shape[0]), 32, thread)))


TEMPLATES.register("fragile_cuda", FragileTemplate())
