"""Calls written as Python: `[search(query="tides", limit=3), now()]`. Llama 3.2 and 4, LFM2.

Values may be JSON's as well: the grammar makes them so, because they are checked by a JSON schema.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astraea_local.api.constraints import SchemaFault, schema_grammar
from astraea_local.api.parts import Text
from astraea_local.api.tool_formats.base import Calls, Tool, Unsupported, markers_in
from astraea_local.api.tool_formats.lark import Lark, Shape
from astraea_local.api.tool_formats.objects import is_plain_object, property_schema
from astraea_local.api.tool_formats.reader import Malformed, Reader, Steps

_JSON_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Pythonic:
    """A list of calls, in tags, or as the whole answer where `opening` is empty."""

    name: str
    opening: str = ""
    closing: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        return markers_in(self.opening, self.closing)

    def read(self, reader: Reader) -> Steps[None]:
        if not self.opening:
            yield from reader.space()
            if (yield from reader.peek()) == "[":
                yield from reader.attempt("", self._read_list(reader))
            yield from reader.until((), Text)
            return
        while marker := (yield from reader.until((self.opening,), Text)):
            yield from reader.attempt(marker, self._read_tagged(reader))

    def _read_tagged(self, reader: Reader) -> Steps[None]:
        source, _ = yield from reader.collect(self.closing)
        yield from self._calls(reader, source)

    def _read_list(self, reader: Reader) -> Steps[None]:
        source = yield from reader.python_list()
        yield from self._calls(reader, source)

    def _calls(self, reader: Reader, source: str) -> Steps[None]:
        # All are understood before the first is told.
        calls = [_understood(node) for node in _nodes(source)]
        if any(name not in reader.tools for name, _ in calls):
            raise Malformed
        for name, arguments in calls:
            yield reader.begin(name)
            yield reader.fragment(json.dumps(arguments, ensure_ascii=False))

    def render(self, calls: Calls) -> str:
        each = (
            f"{name}({', '.join(f'{key}={_written(value)}' for key, value in arguments.items())})"
            for name, arguments in calls
        )
        return f"{self.opening}[{', '.join(each)}]{self.closing}"

    def shape(self, lark: Lark, tools: Sequence[Tool], *, parallel: bool) -> Shape:
        one = lark.any_of(
            f"{lark.literal(t.name + '(')} {_argument_rules(lark, t.parameters)} {lark.literal(')')}"
            for t in tools
        )
        more = lark.more(f"{lark.literal(', ')} {one}", parallel=parallel)
        if not self.opening:
            return Shape("[", f"{one} {more} {lark.literal(']')}", anchored=True)
        return Shape(self.opening, f"{lark.literal('[')} {one} {more} {lark.literal(']' + self.closing)}")


def _written(value: Any) -> str:
    """Python, with strings as JSON has them, which is both."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_written(k)}: {_written(v)}' for k, v in value.items())}}}"
    return repr(value)


def _argument_rules(lark: Lark, schema: Mapping[str, Any]) -> str:
    if lark.exact and not is_plain_object(schema):
        raise Unsupported
    required = schema.get("required") or []
    properties = schema.get("properties") or {}
    # Names that are no identifiers cannot be written as keywords.
    if lark.exact and not all(name.isidentifier() for name in properties):
        raise Unsupported
    needed = [_argument(lark, schema, n) for n in properties if n in required and n.isidentifier()]
    others = [_argument(lark, schema, n) for n in properties if n not in required and n.isidentifier()]
    comma = lark.literal(", ")
    if needed:
        return f" {comma} ".join(needed) + "".join(f" ({comma} {rule})?" for rule in others)
    # With nothing before it, the first of those given has no comma.
    chains = (
        others[i] + "".join(f" ({comma} {rule})?" for rule in others[i + 1 :]) for i in range(len(others))
    )
    return f"({lark.any_of(chains)})?" if others else ""


def _argument(lark: Lark, schema: Mapping[str, Any], name: str) -> str:
    try:
        grammar = schema_grammar(property_schema(schema, name), lenient=not lark.exact)
    except SchemaFault:
        if lark.exact:
            raise Unsupported from None
        grammar = "{}"
    return lark.rule(f"{lark.literal(name + '=')} {lark.json(grammar)}")


def _nodes(source: str) -> list[ast.expr]:
    try:
        body = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Malformed from None
    nodes = body.elts if isinstance(body, ast.List) else [body]
    if not nodes:
        raise Malformed
    return nodes


def _understood(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args:
        raise Malformed
    if any(k.arg is None for k in node.keywords):
        raise Malformed
    return _dotted(node.func), {str(k.arg): _literal(k.value) for k in node.keywords}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise Malformed


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return node.value
        case ast.Name(id=word) if word in _JSON_WORDS:
            return _JSON_WORDS[word]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(k): _literal(v) for k, v in zip(keys, values, strict=True)}
    raise Malformed


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise Malformed
