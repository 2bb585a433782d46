"""Einsum as transposes, reshapes, matrix products and sums."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.errors import ModelError
from tcomp.frontend.onnx.axes import static_dim
from tcomp.frontend.onnx.context import Context, OnnxNode
from tcomp.frontend.onnx.converter import converter
from tcomp.relay.dims import Dim, product
from tcomp.relay.graph import Value


@dataclass(frozen=True)
class Term:
    """A tensor with one letter an axis, no letter twice."""

    value: Value
    letters: str

    def size(self, letter: str) -> Dim:
        return self.value.shape[self.letters.index(letter)]


@converter("Einsum")
def einsum(ctx: Context, node: OnnxNode) -> Value:
    operands = node.all_inputs()
    subscripts, result = _parse(node.text("equation"), operands)
    terms = [_diagonal(ctx, value, letters) for value, letters in zip(operands, subscripts, strict=True)]
    term = terms[0]
    for i, other in enumerate(terms[1:], start=1):
        later = "".join(t.letters for t in terms[i + 1 :]) + result
        term = _contract(ctx, term, other, later)
    return _arranged(ctx, _summed(ctx, term, result), result).value


def _parse(equation: str, operands: list[Value]) -> tuple[list[str], str]:
    """Letters of each operand and of the result; an ellipsis becomes upper-case letters of its own."""
    equation = equation.replace(" ", "")
    left, arrow, result = equation.partition("->")
    subscripts = left.split(",")
    if len(subscripts) != len(operands):
        raise ModelError(
            f"equation `{equation}` names {len(subscripts)} operands, but it has {len(operands)}"
        )
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    hidden = [
        v.type.rank - len(s.replace("...", "")) if "..." in s else 0
        for s, v in zip(subscripts, operands, strict=True)
    ]
    letters = "".join(spare[: max(hidden, default=0)])
    subscripts = [
        s.replace("...", letters[len(letters) - h :]) for s, h in zip(subscripts, hidden, strict=True)
    ]
    for subscript, value in zip(subscripts, operands, strict=True):
        if len(subscript) != value.type.rank:
            raise ModelError(f"`{subscript}` of equation `{equation}` does not fit {value.type}")
    if not arrow:
        joined = "".join(subscripts)
        result = "..." + "".join(sorted(c for c in set(joined) if joined.count(c) == 1 and c not in letters))
    return subscripts, result.replace("...", letters)


def _diagonal(ctx: Context, value: Value, letters: str) -> Term:
    """The elements where axes of the same letter have the same index, each letter once.

    Two axes of n elements become one of n * n, of which every n + 1st element counts.
    """
    repeated = next((c for c in letters if letters.count(c) > 1), None)
    if repeated is None:
        return Term(value, letters)
    first = letters.index(repeated)
    second = letters.index(repeated, first + 1)
    size = static_dim(value, first, "a diagonal in its equation")
    if value.shape[second] != size:
        raise ModelError(f"`{letters}` takes a diagonal of {value.type}, whose axes differ")
    others = [a for a in range(len(letters)) if a not in (first, second)]
    square = ctx.transpose(value, [*others, first, second])
    outer = square.shape[:-2]
    line = ctx.reshape(square, (*outer, size * size))
    begin, strides = (0,) * len(outer), (1,) * len(outer)
    taken = ctx.op("slice", line, begin=(*begin, 0), end=line.shape, strides=(*strides, size + 1))
    return _diagonal(ctx, taken, "".join(letters[a] for a in others) + repeated)


def _summed(ctx: Context, term: Term, kept: str) -> Term:
    """Sum away the letters that nothing later needs."""
    axes = tuple(i for i, c in enumerate(term.letters) if c not in kept)
    if not axes:
        return term
    value = ctx.op("reduce_sum", term.value, axes=axes, keepdims=False)
    return Term(value, "".join(c for c in term.letters if c in kept))


def _arranged(ctx: Context, term: Term, letters: str) -> Term:
    return Term(ctx.transpose(term.value, [term.letters.index(c) for c in letters]), letters)


def _contract(ctx: Context, a: Term, b: Term, later: str) -> Term:
    """The product of two terms: [batch, a only, summed] x [batch, summed, b only] as one matmul."""
    a, b = _summed(ctx, a, b.letters + later), _summed(ctx, b, a.letters + later)
    shared = [c for c in a.letters if c in b.letters]
    # An axis of size 1 that meets a larger one broadcasts, so it cannot be summed by the matmul.
    batch = "".join(c for c in shared if c in later or a.size(c) != b.size(c))
    summed = "".join(c for c in shared if c not in batch)
    rows = "".join(c for c in a.letters if c not in b.letters)
    columns = "".join(c for c in b.letters if c not in a.letters)
    left, right = _arranged(ctx, a, batch + rows + summed), _arranged(ctx, b, batch + summed + columns)
    row_sizes, column_sizes = [a.size(c) for c in rows], [b.size(c) for c in columns]
    depth = product(a.size(c) for c in summed)
    x = ctx.reshape(left.value, (*(a.size(c) for c in batch), product(row_sizes), depth))
    y = ctx.reshape(right.value, (*(b.size(c) for c in batch), depth, product(column_sizes)))
    z = ctx.op("matmul", x, y)
    value = ctx.reshape(z, (*z.shape[: len(batch)], *row_sizes, *column_sizes))
    return _summed(ctx, Term(value, batch + rows + columns), later)
