"""Control flow: a conditional whose condition is known is replaced by the branch it takes."""

from __future__ import annotations

from tcomp.errors import UnsupportedError
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.relay.graph import Constant, Value


@converter("If")
def conditional(ctx: Context, node: OnnxNode) -> list[Value]:
    condition = node.input(0)
    if not isinstance(condition, Constant):
        raise UnsupportedError("its condition is only known at run time")
    branch = "then_branch" if bool(condition.data.reshape(-1)[0]) else "else_branch"
    return ctx.inline(node.attrs[branch])
