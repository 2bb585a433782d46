"""Bits of words say which taps of windows hang over the border of an image."""

from __future__ import annotations

from itertools import product

import pytest

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Attr
from tcomp.tensor.convolution import Convolution
from tcomp.tensor.loops import Expression, constant
from tcomp.tensor.tensor_cores.window_border import BEYOND, WindowBorder
from tcomp.tvm_api import tirx, tvm


def convolution(size: tuple[int, ...], kernel: tuple[int, ...], **attrs: Attr) -> Convolution:
    builder = GraphBuilder()
    operands = builder.input("data", (1, 2, *size)), builder.input("weight", (2, 2, *kernel))
    graph = builder.build(builder.op(f"conv{len(size)}d", *operands, **attrs))
    return Convolution.of(graph.nodes[0])


def numbers(words: list[Expression]) -> list[int]:
    return [number(word) for word in words]


def number(word: Expression) -> int:
    """TVM folds all of it but what bits of several fields are joined by."""
    word = tvm.sym.Analyzer().simplify(word)
    return int(word) if isinstance(word, tirx.IntImm) else number(word.a) | number(word.b)


@pytest.mark.parametrize(
    ("conv", "words"),
    [
        (convolution((5, 7), (3, 3), padding=(1, 1, 1, 1)), 1),
        (convolution((6, 9), (3, 5), padding=(0, 2, 0, 1), strides=(2, 1), dilation=(1, 2)), 1),
        (convolution((9, 9), (7, 7), padding=(3, 3, 3, 3), strides=(2, 2)), 1),
        (convolution((4, 4, 4), (3, 2, 3), padding=(1, 0, 1, 1, 1, 1), dilation=(2, 1, 1)), 1),
        (convolution((20,), (41,), padding=(25, 30)), 2),
        (convolution((12, 12), (20, 20), padding=(10, 10, 10, 10)), 2),
    ],
)
def test_words_have_a_common_bit_where_a_tap_is_outside(conv: Convolution, words: int) -> None:
    border = WindowBorder(conv)
    assert border.words == words
    taps = {tap: numbers(border.tap([constant(i) for i in tap])) for tap in product(*map(range, conv.kernel))}
    assert all(any(found) and all(0 <= word < BEYOND for word in found) for found in taps.values())
    for out in product(*map(range, conv.out_size)):
        outside = numbers(border.outside([constant(i) for i in out]))
        assert all(0 <= word < BEYOND for word in outside)
        for tap, found in taps.items():
            at = [i - begin for i, begin in zip(conv.position(out, tap), conv.pad_begin, strict=True)]
            inside = all(0 <= i < size for i, size in zip(at, conv.in_size, strict=True))
            assert inside == (not any(a & b for a, b in zip(outside, found, strict=True)))


def test_without_padding_there_are_no_words() -> None:
    assert WindowBorder(convolution((5, 7), (3, 3))).words == 0
