"""What templates share about the elementwise operators around their anchor."""

from __future__ import annotations

from tcomp.relay.attributes import integers
from tcomp.relay.graph import Node, Value
from tcomp.relay.op import OPS, FusionKind
from tcomp.tensor.kernel import Kernel


def epilogue_fits(kernel: Kernel) -> bool:
    """Whether every output has the shape of the anchor's output, so that one tile computes both."""
    anchor = kernel.anchor
    return anchor is not None and all(v.shape == anchor.outputs[0].shape for v in kernel.body.outputs)


def output_axes(kernel: Kernel) -> tuple[int, ...] | None:
    """The anchor's axes in the order in which every output has them.

    None when more than elementwise operators and transposes follow the anchor, or outputs differ.
    """
    anchor = kernel.anchor
    if anchor is None or len(anchor.outputs) != 1:
        return None
    shape = anchor.output.shape
    orders: dict[Value, tuple[int, ...]] = {anchor.output: tuple(range(len(shape)))}
    for node in kernel.body.nodes:
        read = {orders[v] for v in node.inputs if v in orders}
        if not read:
            continue
        order = read.pop()
        if node.op == "transpose":
            order = tuple(order[a] for a in integers(node.attrs, "axes"))
        elif read or OPS[node.op].kind is not FusionKind.ELEMENTWISE:
            return None
        orders |= {v: order for v in node.outputs}
        if any(v.shape != tuple(shape[a] for a in order) for v in node.outputs):
            return None
    found = {orders.get(v) for v in kernel.body.outputs}
    return found.pop() if len(found) == 1 else None


def addend_of(kernel: Kernel, anchor: Node) -> tuple[Node, Value] | None:
    """The addition that alone reads what `anchor` makes, and the kernel's input that it adds, if that is all.

    Sums may start from the addend: a step of the reduction then does the addition.
    """
    made = anchor.output
    readers = [node for node in kernel.body.nodes if made in node.inputs]
    if len(readers) != 1 or readers[0].op != "add" or made in kernel.body.outputs:
        return None
    (reader,) = readers
    others = [value for value in reader.inputs if value is not made]
    is_whole = reader.output.type == made.type
    return (reader, others[0]) if is_whole and others and others[0] in kernel.body.inputs else None


def epilogue_operands(kernel: Kernel) -> frozenset[int]:
    """The inputs of the only output's type that elementwise operators alone read, at the output's own index.

    The output may take their memory where each of its elements is stored once, after these reads.
    """
    if len(kernel.body.outputs) != 1:
        return frozenset()
    (output,) = kernel.body.outputs

    def stays_in_place(value: Value) -> bool:
        readers = [node for node in kernel.body.nodes if value in node.inputs]
        return all(
            OPS[node.op].kind is FusionKind.ELEMENTWISE
            and all(v.shape == value.shape and stays_in_place(v) for v in node.outputs)
            for node in readers
        )

    inputs = enumerate(kernel.body.inputs)
    return frozenset(i for i, v in inputs if v.type == output.type and stays_in_place(v))


def placeholder_index(kernel: Kernel, value: Value) -> int | None:
    """Which kernel input `value` is; None when the body computes it."""
    return next((i for i, v in enumerate(kernel.body.inputs) if v is value), None)
