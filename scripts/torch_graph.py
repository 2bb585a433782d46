"""A graph as a PyTorch module: what `bench_gpu.py` gives to `torch.compile`, whatever the model came from.

The graph may have been through the passes that need no target's layouts, so that PyTorch gets normalisations
and attention by their names, merged products and folded constants as tcomp does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch.nn import functional

from tcomp.errors import UnsupportedError
from tcomp.relay.attributes import flag, integer, integers, number, text
from tcomp.relay.graph import Attrs, Constant, Graph, Node, Value

_PLAIN = {"data_layout": "NCHW", "out_layout": "NCHW", "out_dtype": "", "multiply_as": "", "pad_value": 0}
"""The only values of attributes that layouts and precisions give operators."""
_FAR_BELOW = -1e30
"""Hidden scores below that take in what they are added to."""
Apply = Callable[[Sequence[torch.Tensor], Attrs], torch.Tensor]


class TorchGraph(torch.nn.Module):
    """`graph`, its floating-point constants as buffers that `.to(...)` converts.

    Raises UnsupportedError naming an operator that is not known here.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._steps: list[tuple[Apply, Node]] = [(_apply(node), node) for node in graph.nodes]
        self._graph = graph
        self._constants: dict[Value, str] = {}
        for value in (v for node in graph.nodes for v in node.inputs):
            if isinstance(value, Constant) and value not in self._constants:
                self._constants[value] = f"constant{len(self._constants)}"
                self.register_buffer(self._constants[value], torch.from_numpy(value.data.copy()))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values: dict[Value, torch.Tensor] = dict(zip(self._graph.inputs, inputs, strict=True))
        values |= {value: getattr(self, name) for value, name in self._constants.items()}
        for apply, node in self._steps:
            values[node.output] = apply([values[v] for v in node.inputs], node.attrs)
        return tuple(values[v] for v in self._graph.outputs)


def _apply(node: Node) -> Apply:
    if node.op not in OPERATORS:
        raise UnsupportedError(f"`{node.op}` has no PyTorch form in scripts/torch_graph.py; add it there")
    for name, plain in _PLAIN.items():
        if node.attrs.get(name, plain) != plain:
            raise UnsupportedError(f"`{node.op}` with `{name}` {node.attrs[name]} has no PyTorch form")
    if node.op == "slice" and min(integers(node.attrs, "strides"), default=1) < 1:
        raise UnsupportedError("PyTorch has no slices backwards")
    return OPERATORS[node.op]


def _conv2d(x: Sequence[torch.Tensor], attrs: Attrs) -> torch.Tensor:
    top, left, bottom, right = integers(attrs, "padding")
    image, padding = x[0], (top, left)
    if (top, left) != (bottom, right):
        image, padding = functional.pad(image, (left, right, top, bottom)), (0, 0)
    strides, dilation = integers(attrs, "strides"), integers(attrs, "dilation")
    return functional.conv2d(image, x[1], None, strides, padding, dilation, integer(attrs, "groups"))


def _max_pool2d(x: Sequence[torch.Tensor], attrs: Attrs) -> torch.Tensor:
    top, left, bottom, right = integers(attrs, "padding")
    image, padding = x[0], (top, left)
    if (top, left) != (bottom, right):
        image = functional.pad(image, (left, right, top, bottom), value=float("-inf"))
        padding = (0, 0)
    return functional.max_pool2d(
        image, integers(attrs, "kernel"), integers(attrs, "strides"), padding, integers(attrs, "dilation"),
        flag(attrs, "ceil_mode"),
    )  # fmt: skip


def _matmul(x: Sequence[torch.Tensor], attrs: Attrs) -> torch.Tensor:
    left = x[0].mT if flag(attrs, "transpose_a") else x[0]
    return left @ (x[1].mT if flag(attrs, "transpose_b") else x[1])


def _attention(x: Sequence[torch.Tensor], attrs: Attrs) -> torch.Tensor:
    """By PyTorch's own operator, but for hidden scores that others could come near."""
    hidden, dtype = number(attrs, "hidden"), x[0].dtype
    shows = len(x) == 4 and x[3].dtype == torch.bool
    if shows and hidden > _FAR_BELOW:
        return _attention_of_scores(x, attrs)
    mask = x[3] if len(x) == 4 else None
    if mask is not None and shows:
        # Takes in any score that it is added to.
        mask = torch.where(mask, 0.0, hidden if hidden == -inf else max(hidden, torch.finfo(dtype).min))
    if mask is not None:
        mask = mask.to(dtype)
    causal, scale = integer(attrs, "causal"), number(attrs, "scale")
    is_causal = causal == 1 and mask is None
    if causal and not is_causal:
        mask = torch.where(_seen(x, causal), 0.0 if mask is None else mask, -inf).to(dtype)
    return functional.scaled_dot_product_attention(*x[:3], mask, is_causal=is_causal, scale=scale)


def _attention_of_scores(x: Sequence[torch.Tensor], attrs: Attrs) -> torch.Tensor:
    query, key, value, mask = x
    scores = torch.where(mask, query @ key.mT * number(attrs, "scale"), number(attrs, "hidden"))
    if causal := integer(attrs, "causal"):
        scores = torch.where(_seen(x, causal), scores, -inf)
    return scores.softmax(-1) @ value


def _seen(x: Sequence[torch.Tensor], causal: int) -> torch.Tensor:
    ones = torch.ones(x[0].shape[-2], x[1].shape[-2], dtype=torch.bool, device=x[0].device)
    return ones.tril(causal - 1)


def _layer_norm(x: Sequence[torch.Tensor], attrs: Attrs) -> torch.Tensor:
    shape = x[0].shape[integer(attrs, "axis") :]
    return functional.layer_norm(x[0], shape, *x[1:], eps=number(attrs, "epsilon"))


def _slice(x: Sequence[torch.Tensor], attrs: Attrs) -> torch.Tensor:
    begin, end, strides = (integers(attrs, name) for name in ("begin", "end", "strides"))
    return x[0][tuple(slice(*part) for part in zip(begin, end, strides, strict=True))]


def _gather(x: Sequence[torch.Tensor], attrs: Attrs) -> torch.Tensor:
    """Of indices from 0 to the last, as models' tables have them."""
    axis, rank = integer(attrs, "axis"), x[1].dim()
    picked = x[0].index_select(axis, x[1].reshape(-1))
    return picked.unflatten(axis, x[1].shape) if rank else picked.squeeze(axis)


def _cast(x: Sequence[torch.Tensor], attrs: Attrs) -> torch.Tensor:
    return x[0].to(getattr(torch, text(attrs, "dtype")))


OPERATORS: dict[str, Apply] = {
    "add": lambda x, _: x[0] + x[1],
    "attention": _attention,
    "cast": _cast,
    "clip": lambda x, a: x[0].clamp(a["min"], a["max"]),
    "concat": lambda x, a: torch.cat(list(x), integer(a, "axis")),
    "conv2d": _conv2d,
    "gather": _gather,
    "gelu": lambda x, a: functional.gelu(x[0], approximate=text(a, "approximate")),
    "layer_norm": _layer_norm,
    "logical_and": lambda x, _: x[0] & x[1],
    "matmul": _matmul,
    "max_pool2d": _max_pool2d,
    "mul": lambda x, _: x[0] * x[1],
    "reduce_mean": lambda x, a: x[0].mean(integers(a, "axes"), keepdim=flag(a, "keepdims")),
    "relu": lambda x, _: x[0].relu(),
    "reshape": lambda x, a: x[0].reshape(integers(a, "shape")),
    "sigmoid": lambda x, _: x[0].sigmoid(),
    "silu": lambda x, _: functional.silu(x[0]),
    "slice": _slice,
    "softmax": lambda x, a: x[0].softmax(integer(a, "axis")),
    "sub": lambda x, _: x[0] - x[1],
    "tanh": lambda x, _: x[0].tanh(),
    "transpose": lambda x, a: x[0].permute(integers(a, "axes")),
    "where": lambda x, _: torch.where(*x),
}
