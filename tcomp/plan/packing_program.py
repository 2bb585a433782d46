"""The program by which a GPU packs constants when a context is created."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from tcomp.plan.planner import distinct_kernels, plan
from tcomp.plan.program import Copy, DevicePacked, Place, Program, Step
from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Graph, Node, Value
from tcomp.relay.types import TensorType
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.template import Scheduled
from tcomp.transform.fuse_ops import FuseOps


def packing_program(packed: Sequence[DevicePacked], schedule: Callable[[Kernel], Scheduled]) -> Program:
    """All of `packed` as one program, whose steps name the places of their operands and of what they make.

    It has no inputs and no outputs, but an arena of its own.
    """
    operands = list(dict.fromkeys(place for one in packed for place in one.operands))
    fused = FuseOps().run(_graph(packed, operands), Counter())
    program = plan(fused, {key: schedule(kernel) for key, kernel in distinct_kernels(fused).items()})
    places = {"input": operands, "output": [one.place for one in packed]}

    def placed(place: Place) -> Place:
        return places[place.space][place.index] + place.offset if place.space in places else place

    def step(one: Step) -> Step:
        if isinstance(one, Copy):
            return replace(one, source=placed(one.source), destination=placed(one.destination))
        return replace(one, arguments=tuple(map(placed, one.arguments)))

    return replace(program, inputs=(), outputs=(), steps=tuple(map(step, program.steps)))


def _graph(packed: Sequence[DevicePacked], operands: Sequence[Place]) -> Graph:
    """The functions side by side. Operands are inputs, so that no kernel wants any of them packed in turn."""
    g = GraphBuilder("packing")
    inputs: dict[Place, Value] = {}
    types = _types(packed)
    for number, place in enumerate(operands):
        inputs[place] = g.input(f"operand{number}", types[place].shape, types[place].dtype)
    outputs: list[Value] = []
    for one in packed:
        values: dict[Value, Value] = {
            own: inputs[place] for own, place in zip(_operands(one.function), one.operands, strict=True)
        }
        for node in one.function.nodes:
            made = tuple(Value(v.type, v.name) for v in node.outputs)
            g.add(Node(node.op, tuple(values[v] for v in node.inputs), node.attrs, made, node.name))
            values.update(zip(node.outputs, made, strict=True))
        outputs.append(values[one.function.outputs[0]])
    return g.build(*outputs)


def _operands(function: Graph) -> list[Value]:
    return [*function.inputs, *function.constants]


def _types(packed: Sequence[DevicePacked]) -> dict[Place, TensorType]:
    return {
        place: value.type
        for one in packed
        for value, place in zip(_operands(one.function), one.operands, strict=True)
    }
