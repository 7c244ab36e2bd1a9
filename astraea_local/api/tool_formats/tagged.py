"""Calls in which each argument has tags of its own: Qwen-Coder, Seed, MiniMax, GLM, DeepSeek V3.2 and later.

Strings stand there as they are, everything else as JSON.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astraea_local.api.constraints import SchemaFault, schema_grammar
from astraea_local.api.parts import Text
from astraea_local.api.tool_formats.base import Calls, Tool, Unsupported, markers_in
from astraea_local.api.tool_formats.lark import NOTHING, Lark, Shape
from astraea_local.api.tool_formats.objects import (
    is_plain_object,
    kinds,
    property_schema,
    takes_any_text,
    words,
)
from astraea_local.api.tool_formats.reader import Reader, Steps


@dataclass(frozen=True, slots=True)
class Tagged:
    """`opening (call NAME call_end (key NAME key_end value VALUE value_end)* call_close)* closing`."""

    name: str
    call: str
    call_end: str
    key: str
    key_end: str
    value: str
    value_end: str
    call_close: str
    opening: str = ""
    closing: str = ""
    between: str = ""
    typed: bool = False
    """Whether an attribute behind the name says if the value is a string: ` string="true"`."""

    @property
    def markers(self) -> tuple[str, ...]:
        texts = (self.opening, self.call, self.call_end, self.key, self.key_end, self.value)
        return markers_in(*texts, self.value_end, self.call_close, self.closing)

    def read(self, reader: Reader) -> Steps[None]:
        call, opening = self.call.strip(), self.opening.strip()
        # A model may leave the outer tags out.
        while marker := (yield from reader.until(tuple(filter(None, (opening, call))), Text)):
            yield from reader.attempt(marker, self._read_calls(reader, begun=marker != opening))

    def _read_calls(self, reader: Reader, *, begun: bool) -> Steps[None]:
        call, closing = self.call.strip(), self.closing.strip()
        if not begun:
            yield from reader.space()
            yield from reader.expect(call)
        while True:
            yield from self._read_one(reader)
            yield from reader.space()
            if not (yield from reader.accept(call)):
                break
        if closing:
            yield from reader.accept(closing)

    def _read_one(self, reader: Reader) -> Steps[None]:
        key, close, end = self.key.strip(), self.call_close.strip(), self.call_end.strip()
        # Where nothing marks the name's end, what follows does.
        name, found = yield from reader.name(*((end,) if end else ("\n", key, close)))
        schema = reader.tools.get(name, {})
        pending = "" if end or found == "\n" else found
        arguments: dict[str, Any] = {}
        begun = False
        while True:
            yield from reader.space()
            if not pending:
                pending = yield from reader.expect(key, close)
            if pending == close:
                break
            pending = ""
            argument, value = yield from self._read_argument(reader, schema)
            # A second value of one name would make two keys of it.
            if argument in arguments:
                continue
            arguments[argument] = value
            if not begun:
                yield reader.begin(name)
            piece = f"{json.dumps(argument, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
            yield reader.fragment((", " if begun else "{") + piece)
            begun = True
        if not begun:
            yield reader.begin(name)
        yield reader.fragment("}" if begun else "{}")

    def _read_argument(self, reader: Reader, schema: Mapping[str, Any]) -> Steps[tuple[str, Any]]:
        name, _ = yield from reader.name('"' if self.typed else self.key_end.strip())
        is_string: bool | None = None
        if self.typed:
            attribute, _ = yield from reader.collect(">")
            is_string = 'string="true"' in attribute
        elif self.value.strip():
            yield from reader.space()
            yield from reader.expect(self.value.strip())
        text, _ = yield from reader.collect(self.value_end.strip())
        if self.value.endswith("\n"):
            text = text.removeprefix("\n").removesuffix("\n")
        return name, _value(text, property_schema(schema, name), is_string)

    def render(self, calls: Calls) -> str:
        each = [
            f"{self.call}{name}{self.call_end}{''.join(self._arguments(arguments))}{self.call_close}"
            for name, arguments in calls
        ]
        if self.opening and not self.between:
            return f"{self.opening}{''.join(each)}{self.closing}"
        return self.between.join(f"{self.opening}{one}{self.closing}" for one in each)

    def _arguments(self, arguments: Mapping[str, Any]) -> Iterator[str]:
        for name, value in arguments.items():
            is_string = isinstance(value, str)
            text = value if is_string else json.dumps(value, ensure_ascii=False)
            yield f"{self.key}{name}{self._key_end(is_string=is_string)}{text}{self.value_end}"

    def _key_end(self, *, is_string: bool) -> str:
        return f'" string="{"true" if is_string else "false"}">' if self.typed else self.key_end + self.value

    def shape(self, lark: Lark, tools: Sequence[Tool], *, parallel: bool) -> Shape:
        one = lark.any_of(
            f"{lark.literal(tool.name + self.call_end)} {self._argument_rules(lark, tool.parameters)} "
            f"{lark.literal(self.call_close)}"
            for tool in tools
        )
        if self.opening and not self.between:
            more = lark.more(f"{lark.literal(self.call)} {one}", parallel=parallel)
            trigger = self.opening.rstrip()
            first = lark.literal(self.opening[len(trigger) :] + self.call)
            return Shape(trigger, f"{first} {one} {more} {lark.literal(self.closing)}")
        whole = self.opening + self.call
        trigger = (self.opening or self.call).rstrip()
        end = lark.literal(self.closing) if self.closing else ""
        more = lark.more(f"{lark.literal(self.between + whole)} {one} {end}", parallel=parallel)
        gap = whole[len(trigger) :]
        return Shape(trigger, f"{lark.literal(gap) if gap else ''} {one} {end} {more}")

    def _argument_rules(self, lark: Lark, schema: Mapping[str, Any]) -> str:
        """Required arguments first, each in its place, then any of the others."""
        if lark.exact and not is_plain_object(schema):
            raise Unsupported
        required = schema.get("required") or []
        rules = []
        for name in sorted(schema.get("properties") or {}, key=lambda n: n not in required):
            rule = self._argument_rule(lark, schema, name)
            rules.append(rule if name in required else f"({rule})?")
        return " ".join(rules)

    def _argument_rule(self, lark: Lark, schema: Mapping[str, Any], name: str) -> str:
        part = property_schema(schema, name)
        choices, allowed = words(part), kinds(part)
        # A value of unknown type is text too, as far as the grammar knows.
        is_string = choices is not None or "string" in allowed or not (allowed or "$ref" in part)
        head = lark.literal(f"{self.key}{name}{self._key_end(is_string=is_string)}")
        tail = lark.literal(self.value_end)
        if choices is not None:
            return f"{head} {lark.any_of(lark.literal(word) or NOTHING for word in choices)} {tail}"
        if is_string:
            # Bounds and patterns of raw text are nothing that a JSON grammar can check.
            if lark.exact and not takes_any_text(part):
                raise Unsupported
            tag = self.value_end.strip()
            return f"{head} {lark.up_to(tag)} {lark.literal(self.value_end.partition(tag)[2])}"
        try:
            grammar = schema_grammar(part, lenient=not lark.exact)
        except SchemaFault:
            if lark.exact:
                raise Unsupported from None
            grammar = "{}"
        return f"{head} {lark.json(grammar)} {tail}"


def _value(text: str, schema: Any, is_string: bool | None) -> Any:
    """What an argument's text means: JSON unless it may be a string."""
    if is_string is None:
        allowed = kinds(schema)
        is_string = "string" in allowed and not (text == "null" and "null" in allowed)
    if is_string:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)
