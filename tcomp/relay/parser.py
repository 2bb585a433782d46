"""Read Relay text (the format is described in `tcomp.relay.printer`)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

from tcomp.errors import ParseError, TcompError
from tcomp.relay.builder import make_node
from tcomp.relay.dims import parse_dim
from tcomp.relay.graph import Attr, Constant, Graph, Node, Value
from tcomp.relay.op import OPS
from tcomp.relay.printer import content_hash, weights_path
from tcomp.relay.types import BITS, SHORT_NAMES, Array, TensorType, numpy_dtype

_LONG_NAMES = {short: name for name, short in SHORT_NAMES.items()}
_TOKEN = re.compile(
    r"""\s*(?:\#\#[^\n]*\n\s*)*(?:
      (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<dim>`[^`]*`)
    | (?P<type>[a-z][a-z\d]*\[[^\]]*\])
    | (?P<number>-?(?:inf|nan|\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\d+)(?![\w.]))
    | (?P<hash>\#[0-9a-f]{16})
    | (?P<word>[A-Za-z_][\w.\-]*)
    | (?P<punctuation>[%@(){}\[\],=:])
    )""",
    re.VERBOSE,
)


def parse_graph(text: str, weights: Mapping[str, Array] | None = None, source: str = "text") -> Graph:
    """The graph that `text` describes; `weights` hold the constants of its `weights` table by name.

    Raises ParseError with line number for malformed text, wrong types, missing or altered weights.
    """
    return _Parser(text, weights or {}, source).module()


def load_graph(path: Path) -> Graph:
    """Read what `save_graph` wrote: `path` and, if the text names weights, `path` + `.safetensors`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParseError(f"cannot read Relay text {path}: {error}") from None
    stored = weights_path(path)
    try:
        weights = load_file(stored) if stored.exists() else {}
    except (OSError, SafetensorError) as error:
        raise ParseError(f"cannot read weights {stored}: {error}") from None
    return parse_graph(text, weights, str(path))


class _Parser:
    def __init__(self, text: str, weights: Mapping[str, Array], source: str) -> None:
        self._text, self._at, self._source = text, 0, source
        self._stored = weights
        self._constants: dict[str, Constant] = {}
        self._kind, self._token = "", ""
        self._advance()

    def module(self) -> Graph:
        if self._at_token("weights"):
            self._advance()
            self._expect("{")
            while not self._at_token("}"):
                self._weight()
            self._advance()
        graph = self._graph()
        if self._kind != "end":
            self._fail("the end of the text")
        return graph

    def _weight(self) -> None:
        self._expect("@")
        name = self._name()
        self._expect(":")
        expected = self._type()
        digest = self._take("hash")[1:]
        data = self._stored.get(name)
        if data is None:
            raise ParseError(f"{self._where()}: weight `{name}` is not among the stored weights")
        if expected.dtype in BITS:
            data = data.view(numpy_dtype(expected.dtype))
        if content_hash(data) != digest:
            raise ParseError(
                f"{self._where()}: weight `{name}` differs from the one the text was written for"
            )
        self._constants[name] = Constant.of(data, name)

    def _graph(self) -> Graph:
        self._expect("graph")
        name = self._name()
        self._expect("(")
        values: dict[str, Value] = {}
        inputs: list[Value] = []
        while not self._at_token(")"):
            label = self._value_name()
            self._expect(":")
            inputs.append(self._define(values, label, Value(self._type(), _hint(label))))
            if self._at_token(","):
                self._advance()
        self._advance()
        self._expect("{")
        nodes: list[Node] = []
        while not self._at_token("return"):
            nodes.append(self._node(values))
        self._advance()
        outputs = [self._operand(values)]
        while self._at_token(","):
            self._advance()
            outputs.append(self._operand(values))
        self._expect("}")
        return Graph(tuple(inputs), tuple(nodes), tuple(outputs), name)

    def _node(self, values: dict[str, Value]) -> Node:
        labels = [self._value_name()]
        while self._at_token(","):
            self._advance()
            labels.append(self._value_name())
        self._expect("=")
        op = self._take("word")
        where = self._where()
        if op not in OPS:
            raise ParseError(f"{where}: there is no operator `{op}`")
        self._expect("(")
        operands: list[Value] = []
        while not self._at_token(")"):
            operands.append(self._operand(values))
            if self._at_token(","):
                self._advance()
        self._advance()
        attrs = self._attrs() if self._at_token("{") else {}
        types = self._types() if self._at_token(":") else None
        name = self._unquoted(self._take("string")) if self._kind == "string" else ""
        try:
            node = make_node(op, operands, attrs, name, [_hint(x) for x in labels])
        except TcompError as error:
            raise ParseError(f"{where}: {error}") from None
        inferred = [v.type for v in node.outputs]
        if len(inferred) != len(labels) or (types is not None and types != inferred):
            given = ", ".join(map(str, types or labels))
            raise ParseError(f"{where}: `{op}` gives {', '.join(map(str, inferred))}, the text says {given}")
        for label, value in zip(labels, node.outputs, strict=True):
            self._define(values, label, value)
        return node

    def _define(self, values: dict[str, Value], label: str, value: Value) -> Value:
        if label in values:
            raise ParseError(f"{self._where()}: `%{label}` is defined twice")
        values[label] = value
        return value

    def _attrs(self) -> dict[str, Attr]:
        self._expect("{")
        attrs: dict[str, Attr] = {}
        while not self._at_token("}"):
            name = self._take("word")
            self._expect("=")
            attrs[name] = self._graph() if self._at_token("graph") else self._attr()
            if self._at_token(","):
                self._advance()
        self._advance()
        return attrs

    def _attr(self) -> Attr:
        kind, token = self._kind, self._token
        if token == "(":
            return tuple(self._sequence("(", ")"))
        if kind == "word" and token in ("true", "false", "none"):
            self._advance()
            return {"true": True, "false": False, "none": None}[token]
        if kind == "string":
            self._advance()
            return self._unquoted(token)
        if kind == "dim":
            self._advance()
            return parse_dim(token[1:-1])
        return self._number()

    def _sequence(self, opening: str, closing: str) -> list[Attr]:
        self._expect(opening)
        items: list[Attr] = []
        while self._token != closing:
            items.append(self._attr())
            if self._at_token(","):
                self._advance()
        self._advance()
        return items

    def _number(self) -> int | float:
        token = self._take("number")
        return int(token) if token.lstrip("-").isdigit() else float(token)

    def _types(self) -> list[TensorType]:
        self._expect(":")
        types = [self._type()]
        while self._at_token(","):
            self._advance()
            types.append(self._type())
        return types

    def _operand(self, values: Mapping[str, Value]) -> Value:
        if self._at_token("%"):
            label = self._value_name()
            if label not in values:
                raise ParseError(f"{self._where()}: `%{label}` is used before it is defined")
            return values[label]
        if self._at_token("@"):
            self._advance()
            name = self._name()
            if name not in self._constants:
                raise ParseError(f"{self._where()}: `@{name}` is not in the weights table")
            return self._constants[name]
        elements = self._sequence("[", "]") if self._at_token("[") else [self._attr()]
        self._expect(":")
        expected = self._type()
        try:
            array = np.array(elements, numpy_dtype(expected.dtype)).reshape(expected.static_shape)
        except (ValueError, OverflowError, TcompError):
            raise ParseError(f"{self._where()}: {elements} does not fit {expected}") from None
        return Constant.of(array)

    def _type(self) -> TensorType:
        text = self._take("type")
        dtype, _, shape = text[:-1].partition("[")
        if dtype not in _LONG_NAMES:
            raise ParseError(f"{self._where()}: unknown element type `{dtype}`")
        dims = [parse_dim(d.strip()) for d in shape.split(",")] if shape.strip() else []
        return TensorType(tuple(dims), _LONG_NAMES[dtype])

    def _value_name(self) -> str:
        self._expect("%")
        return self._name()

    def _name(self) -> str:
        kind, token = self._kind, self._token
        if kind not in ("word", "number", "string"):
            self._fail("a name")
        self._advance()
        return self._unquoted(token) if kind == "string" else token

    def _unquoted(self, token: str) -> str:
        try:
            return str(json.loads(token))
        except ValueError:
            raise ParseError(f"{self._where()}: {token} is not a JSON string") from None

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            rest = self._text[self._at :].strip()
            if rest:
                raise ParseError(f"{self._where()}: cannot read `{rest[:20]}`")
            self._kind, self._token = "end", ""
            return
        self._at = match.end()
        self._kind = match.lastgroup or ""
        self._token = match.group(self._kind)

    def _at_token(self, token: str) -> bool:
        return self._token == token

    def _take(self, kind: str) -> str:
        if self._kind != kind:
            self._fail(f"a {kind}")
        token = self._token
        self._advance()
        return token

    def _expect(self, token: str) -> None:
        if self._token != token:
            self._fail(f"`{token}`")
        self._advance()

    def _fail(self, expected: str) -> None:
        raise ParseError(f"{self._where()}: expected {expected}, found `{self._token or 'the end'}`")

    def _where(self) -> str:
        return f"{self._source}:{self._text.count(chr(10), 0, self._at) + 1}"


def _hint(label: str) -> str:
    return "" if label.isdigit() else label
