"""What a pass is, and how a pipeline of passes is written as text.

A pass is a frozen dataclass; its fields are its options, a target being written by its tag. On the command
line `fuse-ops{max-depth=8},simplify` names two passes, the first with an option; dashes there are underscores
here.
"""

from __future__ import annotations

import ast
import re
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

from tcomp.errors import GraphError, ParseError
from tcomp.registry import Registry
from tcomp.relay.graph import Graph
from tcomp.relay.rewrite import keep_output_names
from tcomp.relay.verify import verify
from tcomp.target.parse import parse_target
from tcomp.target.target import Target


@dataclass(frozen=True)
class Pass(ABC):
    """A transformation of a graph into an equivalent one.

    Inputs and outputs keep their number, order, names and types.
    """

    name: ClassVar[str]

    @abstractmethod
    def transform(self, graph: Graph, stats: Counter[str]) -> Graph:
        """The transformed graph; `stats` counts what was done, by name."""

    def run(self, graph: Graph, stats: Counter[str] | None = None) -> Graph:
        """Transform `graph` and verify the result.

        Raises GraphError naming the pass when its result is not a well-formed equivalent.
        """
        counts: Counter[str] = Counter() if stats is None else stats
        result = self.transform(graph, counts)
        if result is graph:
            return graph
        result = keep_output_names(result, [v.name for v in graph.outputs])
        try:
            _check_interface(graph, result)
            verify(result)
        except GraphError as error:
            raise GraphError(f"after pass `{self.name}`: {error}") from error
        return result


SomePass = TypeVar("SomePass", bound=Pass)
PASS_TYPES: Registry[type[Pass]] = Registry("pass", "tcomp.transform")


def declare_pass(pass_type: type[SomePass]) -> type[SomePass]:
    """Class decorator: register a pass under its `name`."""
    PASS_TYPES.register(pass_type.name, pass_type)
    return pass_type


def parse_pipeline(text: str) -> list[Pass]:
    """The passes that `text` names, in order: `name{option=value option=value},name`.

    Raises ParseError for malformed text and unknown options, UsageError for unknown passes.
    """
    passes: list[Pass] = []
    at = 0
    while at < len(text):
        match = _ITEM.match(text, at)
        if match is None:
            raise ParseError(f"cannot read pipeline at `{text[at:]}`; write `name{{option=value}},name`")
        passes.append(_make_pass(match["name"], match["options"] or ""))
        at = match.end()
    return passes


def print_pipeline(passes: list[Pass]) -> str:
    """The text that `parse_pipeline` reads back as `passes`; options at their default are left out."""
    return ",".join(_pass_text(p) for p in passes)


_ITEM = re.compile(r"\s*(?P<name>[a-z][a-z0-9-]*)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?:,|$)")
_OPTION = re.compile(r"(?P<name>[a-z][a-z0-9-]*)=(?P<value>[^\s,]+)[\s,]*")


def _make_pass(name: str, options: str) -> Pass:
    pass_type = PASS_TYPES[name]
    known = {f.name.replace("_", "-"): f.name for f in fields(pass_type)}
    values: dict[str, object] = {}
    rest = options.strip()
    while rest:
        match = _OPTION.match(rest)
        if match is None:
            raise ParseError(f"pass `{name}`: cannot read options at `{rest}`; write `option=value`")
        option = match["name"]
        if option not in known:
            listed = ", ".join(known) or "none"
            raise ParseError(f"pass `{name}` has no option `{option}`; it has {listed}")
        values[known[option]] = _value(name, pass_type, known[option], match["value"])
        rest = rest[match.end() :]
    return pass_type(**values)


def _value(name: str, pass_type: type[Pass], option: str, text: str) -> object:
    default = getattr(pass_type, option)
    if isinstance(default, str):
        return text
    if isinstance(default, Target):
        return parse_target(text)
    literal = {"true": "True", "false": "False"}.get(text, text)
    try:
        value: object = ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        value = None
    if type(value) is not type(default):
        wanted = type(default).__name__
        raise ParseError(
            f"pass `{name}`: option `{option.replace('_', '-')}` is `{text}`, not of type {wanted}"
        )
    return value


def _pass_text(item: Pass) -> str:
    changed = [
        f"{f.name.replace('_', '-')}={_option_text(getattr(item, f.name))}"
        for f in fields(item)
        if getattr(item, f.name) != f.default
    ]
    return item.name + (f"{{{' '.join(changed)}}}" if changed else "")


def _option_text(value: object) -> str:
    return value.name if isinstance(value, Target) else str(value).lower()


def _check_interface(before: Graph, after: Graph) -> None:
    for what, old, new in (
        ("inputs", before.inputs, after.inputs),
        ("outputs", before.outputs, after.outputs),
    ):
        old_text = ", ".join(f"{v.name}: {v.type}" for v in old)
        new_text = ", ".join(f"{v.name}: {v.type}" for v in new)
        if old_text != new_text:
            raise GraphError(f"{what} changed from ({old_text}) to ({new_text})")
