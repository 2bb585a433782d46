"""A schedule template for tests whose `behaviour` knob crashes, hangs, eats memory or computes nonsense.

It serves kernels whose body is called `fake`, and with good behaviour only those called `tame`; half the
configs of `drowsy` ones hang. Workers import it as a plugin.
"""

from __future__ import annotations

from typing import Any

from tcomp.errors import ScheduleError
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph, Node
from tcomp.target.target import Target
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Choice, Config, Ordered, Space
from tcomp.tensor.template import TEMPLATES, Scheduled, Template
from tcomp.tvm_api import s_tir, te, tirx

BEHAVIOURS = ("ok", "wrong", "crash", "hang", "eat", "eat_while_building", "refuse", "parallel")
NAMES = {"fake": BEHAVIOURS, "tame": ("ok",), "drowsy": ("ok", "hang")}


def fake_kernel(size: int = 256, name: str = "fake") -> Kernel:
    """relu on a vector."""
    builder = GraphBuilder(name)
    x = builder.input("x", (size,))
    return Kernel(builder.build(builder.op("relu", x)))


def fake_graph(*sizes: int) -> Graph:
    """A graph with one fake kernel for each size, equal sizes sharing one."""
    builder = GraphBuilder("main")
    outputs = []
    for i, size in enumerate(sizes):
        x = builder.input(f"x{i}", (size,))
        body = fake_kernel(size).body
        node = Node("fused", (x,), {"body": body}, (type(x)(x.type, f"y{i}"),))
        outputs.append(builder.add(node).output)
    return builder.build(*outputs)


def _side_effect(behaviour: str) -> Any:
    """An expression that misbehaves when it is evaluated."""
    gibibyte = tirx.const(1 << 30, "int64")
    if behaviour == "crash":
        return tirx.call_extern("int32", "raise", tirx.const(11, "int32"))
    if behaviour == "hang":
        return tirx.call_extern("int32", "sleep", tirx.const(1000, "int32"))
    memory = tirx.call_extern("handle", "malloc", gibibyte)
    return tirx.call_extern("int32", "memset", memory, tirx.const(1, "int32"), gibibyte)


class FakeTemplate(Template):
    """relu with `work` times as much to do as needed, and one way to misbehave."""

    name = "fake"
    priority = 1000

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return kernel.body.name in NAMES

    def space(self, kernel: Kernel, target: Target) -> Space:
        work = Ordered("work", (1, 2, 4, 8, 16, 32), default=8)
        behaviours = Choice("behaviour", NAMES[kernel.body.name], default="ok")
        if kernel.body.name == "fake":
            return Space((work, behaviours))
        return Space((work, Ordered("variant", tuple(range(64)), default=0), behaviours))

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        behaviour, work = str(config["behaviour"]), int(config["work"])
        if behaviour == "refuse":
            raise ScheduleError("refused on purpose")
        if behaviour == "eat_while_building":
            bytearray(1 << 40)
        x = te.placeholder(kernel.body.inputs[0].type.static_shape, "float32", name="x")
        k = te.reduce_axis((0, work), name="k")
        zero = tirx.const(0, "float32")
        factor = tirx.const((2.0 if behaviour == "wrong" else 1.0) / work, "float32")

        def element(i: Any) -> Any:
            value = tirx.max(x[i], zero) * factor
            if behaviour in ("crash", "hang", "eat"):
                value = value + tirx.Cast("float32", _side_effect(behaviour)) * tirx.const(1e-30, "float32")
            return te.sum(value, axis=k)

        y = te.compute(x.shape, element, name="y")
        schedule = s_tir.Schedule(te.create_prim_func([x, y]))
        if behaviour == "parallel":
            schedule.parallel(schedule.get_loops(schedule.get_sblock("y"))[0])
        return Scheduled(schedule.mod["main"])


TEMPLATES.register("fake", FakeTemplate())
