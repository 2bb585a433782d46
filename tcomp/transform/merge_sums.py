"""Merge sums of pointwise convolutions: the end of a residual block and its projection become one.

    conv(a, Wa) + conv(b, Wb) + c  ->  conv([a b], [Wa Wb]) + c

[a b] are the channels of a and then those of b, which are written where they are read. So nothing is made of
the sum's first half, which would be written, and read again to be added to.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tcomp.relay.attributes import integers
from tcomp.relay.graph import Constant, Graph, Node, Value
from tcomp.relay.op import OPS
from tcomp.relay.pattern import op, operand
from tcomp.relay.rewrite import Match, Rule, rewrite
from tcomp.relay.types import Array
from tcomp.transform.pass_ import Pass, declare_pass
from tcomp.transform.rules.scales import per_channel


@declare_pass
@dataclass(frozen=True)
class MergeSums(Pass):
    """One convolution in place of the sum of two pointwise ones, where channels are a multiple of `block`.

    Inputs of more than `most_bytes` are not read with strides: copying their pixels then costs what is saved.
    """

    name: ClassVar[str] = "merge-sums"
    block: int = 16
    most_bytes: int = 2**20

    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        rule = Rule("sum-of-convolutions", op("add", operand("x"), operand("y")), self._merged)
        return rewrite(graph, (rule,), stats)

    def _merged(self, match: Match) -> Value | None:
        summands = [_Summand.of(match, value) for value in match.root.inputs]
        found = [s for s in summands if s is not None and self._pays(s)]
        if len(found) < len(summands) or len({s.data.dtype for s in found}) > 1:
            return None
        inputs = [s.strided(match) for s in found]
        if inputs[0] is inputs[1]:
            return None
        weights = np.concatenate([s.weights for s in found], axis=1)
        joined = match.op("concat", *inputs, axis=1)
        result = match.op("conv2d", joined, match.constant(weights, found[0].data.dtype))
        biases = [s.bias for s in found if s.bias is not None]
        if not biases:
            return result
        bias = np.sum(biases, axis=0, dtype=biases[0].dtype).reshape(1, -1, 1, 1)
        return match.op("add", result, match.constant(bias, found[0].data.dtype))

    def _pays(self, summand: _Summand) -> bool:
        near = summand.is_dense or summand.data.type.nbytes <= self.most_bytes
        return near and summand.data.type.static_shape[1] % self.block == 0


@dataclass(frozen=True)
class _Summand:
    """A pointwise convolution of one image that is made here: its input, strides and weights, and the vector
    over channels that is added to it. Both are read once."""

    data: Value
    strides: tuple[int, ...]
    weights: Array
    bias: Array | None

    @staticmethod
    def of(match: Match, value: Value) -> _Summand | None:
        node, added = _read_once(match, value), None
        if node is not None and node.op == "add":
            value, added = node.inputs if isinstance(node.inputs[1], Constant) else reversed(node.inputs)
            if not isinstance(added, Constant) or value.type != node.output.type:
                return None
            node = _read_once(match, value)
        if node is None or node.op != "conv2d" or {**node.attrs, "strides": (1, 1)} != OPS["conv2d"].attrs:
            return None
        data, weight = node.inputs
        if not isinstance(weight, Constant) or weight.type.static_shape[2:] != (1, 1):
            return None
        is_made = match.editor.producer(data) is not None
        if not is_made or not data.type.is_static or data.type.static_shape[0] != 1:
            return None
        bias = None if added is None else per_channel(added.data, 4, 1, len(weight.data))
        if added is not None and bias is None:
            return None
        return _Summand(data, integers(node.attrs, "strides", 2), weight.data, bias)

    @property
    def is_dense(self) -> bool:
        return set(self.strides) == {1}

    def strided(self, match: Match) -> Value:
        """The pixels that the convolution reads."""
        if self.is_dense:
            return self.data
        return match.op("max_pool2d", self.data, kernel=(1, 1), strides=self.strides)


def _read_once(match: Match, value: Value) -> Node | None:
    return match.editor.producer(value) if match.editor.use_count(value) == 1 else None
