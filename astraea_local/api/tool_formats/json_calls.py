"""Calls that are JSON objects: name and arguments are members of one.

Hermes, Qwen, Granite, Nemotron and many more put each into tags, or an array of them; Llama 3 answers with
nothing else. Members may come in any order.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from astraea_local.api.parts import Text
from astraea_local.api.tool_formats.base import Calls, Tool, markers_in
from astraea_local.api.tool_formats.lark import Lark, Shape
from astraea_local.api.tool_formats.reader import Malformed, Reader, Steps

_NAME_KEYS = ("name", "tool_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters", "args")


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """`opening{"name": ..., "arguments": {...}}closing`, or an array of such objects."""

    name: str
    opening: str
    closing: str
    array: bool = False
    """Whether all calls stand in one array, or each has its own tags."""
    between: str = "\n"
    """What stands between two calls."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    bare: bool = False
    """Whether an answer that begins with such an object is a call too, without any tag."""
    other_openings: tuple[str, ...] = ()
    """Read, but not written."""

    @property
    def markers(self) -> tuple[str, ...]:
        return markers_in(self.opening, self.closing, *self.other_openings)

    def read(self, reader: Reader) -> Steps[None]:
        if self.bare:
            yield from reader.space()
            if (yield from reader.peek()) == "{":
                yield from reader.attempt("", self._read_bare(reader))
        openings = tuple(filter(None, (self.opening.strip(), *self.other_openings)))
        while marker := (yield from reader.until(openings, Text)):
            yield from reader.attempt(marker, self._read_calls(reader))

    def _read_bare(self, reader: Reader) -> Steps[None]:
        while True:
            yield from _read_object(reader)
            yield from reader.space()
            yield from reader.accept(";", ",")
            yield from reader.space()
            if (yield from reader.peek()) != "{":
                return

    def _read_calls(self, reader: Reader) -> Steps[None]:
        closing = self.closing.strip()
        yield from reader.space()
        in_array = bool((yield from reader.accept("[")))
        while True:
            yield from reader.space()
            yield from _read_object(reader)
            yield from reader.space()
            if in_array and (yield from reader.accept("]")):
                in_array = False
                yield from reader.space()
            if closing and (yield from reader.accept(closing)):
                return
            following = yield from reader.peek()
            if not following:
                return
            if following not in ",{":
                if not closing and not in_array:
                    return
                raise Malformed
            yield from reader.accept(",")

    def render(self, calls: Calls) -> str:
        objects = [
            json.dumps({self.name_key: name, self.arguments_key: dict(arguments)}, ensure_ascii=False)
            for name, arguments in calls
        ]
        if self.array:
            return f"{self.opening}[{', '.join(objects)}]{self.closing}"
        return self.between.join(f"{self.opening}{each}{self.closing}" for each in objects)

    def shape(self, lark: Lark, tools: Sequence[Tool], *, parallel: bool) -> Shape:
        head = f'{{"{self.name_key}": "'
        middle = f'", "{self.arguments_key}": '
        one = lark.any_of(f"{lark.literal(t.name + middle)} {lark.json(t.grammar)}" for t in tools)
        tail = lark.literal("}")
        if self.array:
            more = lark.more(f"{lark.literal(', ' + head)} {one} {tail}", parallel=parallel)
            rest = f"{lark.literal('[' + head)} {one} {tail} {more} {lark.literal(']' + self.closing)}"
            return Shape(self.opening, rest)
        if not self.opening:
            more = lark.more(f"{lark.literal(self.between + head)} {one} {tail}", parallel=parallel)
            return Shape(head, f"{one} {tail} {more}", anchored=True)
        end = lark.literal("}" + self.closing)
        again = lark.literal(self.between + self.opening + head)
        more = lark.more(f"{again} {one} {end}", parallel=parallel)
        # Text may end right at the trigger, so that is the tag alone, without its line break.
        trigger = self.opening.rstrip()
        gap = self.opening[len(trigger) :]
        return Shape(trigger, f"{lark.literal(gap + head)} {one} {end} {more}")


def _read_object(reader: Reader) -> Steps[None]:
    """One call. Raises `Malformed`."""
    yield from reader.expect("{")
    name = held = ""
    done = False
    while True:
        yield from reader.space()
        key = yield from reader.json_string()
        yield from reader.space()
        yield from reader.expect(":")
        yield from reader.space()
        if key in _NAME_KEYS and not name:
            name = yield from reader.json_string()
        elif key in _ARGUMENT_KEYS and not (done or held):
            if name and (yield from reader.peek()) == "{":
                yield reader.begin(name)
                yield from reader.arguments()
                done = True
            else:
                held = yield from _held_arguments(reader)
        else:
            yield from reader.json_text()
        yield from reader.space()
        if (yield from reader.expect(",", "}")) == "}":
            break
    if not done:
        yield reader.begin(name)
        yield reader.fragment(held or "{}")


def _held_arguments(reader: Reader) -> Steps[str]:
    text = yield from reader.json_text()
    try:
        value = json.loads(text)
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise Malformed from None
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise Malformed
    return json.dumps(value, ensure_ascii=False)
