"""Calls that are a name, a separator and JSON: Mistral, DeepSeek, Kimi, Functionary, Solar."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from astraea_local.api.parts import Text
from astraea_local.api.tool_formats.base import Calls, Tool, markers_in
from astraea_local.api.tool_formats.lark import Lark, Shape
from astraea_local.api.tool_formats.reader import Malformed, Reader, Steps


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """`opening (begin NAME separator {...} end)* closing`."""

    name: str
    begin: str
    separator: str
    end: str = ""
    opening: str = ""
    closing: str = ""
    between: str = ""
    prefixes: tuple[str, ...] = ()
    """What may stand before the name; the first is written."""
    name_ends: tuple[str, ...] = ()
    """What may follow the name; only the separator is written."""
    numbered: bool = False
    """Whether the name is followed by `:` and the number of the call."""

    @property
    def markers(self) -> tuple[str, ...]:
        texts = (self.opening, self.begin, self.separator, self.end, self.closing)
        return markers_in(*texts, *self.prefixes, *self.name_ends)

    def read(self, reader: Reader) -> Steps[None]:
        openings = tuple(filter(None, (self.opening.strip(), self.begin.strip())))
        while marker := (yield from reader.until(openings, Text)):
            yield from reader.attempt(marker, self._read_calls(reader, begun=marker == self.begin.strip()))

    def _read_calls(self, reader: Reader, *, begun: bool) -> Steps[None]:
        if not begun:
            yield from reader.space()
            yield from reader.expect(self.begin.strip())
        while True:
            yield from self._read_one(reader)
            yield from reader.space()
            if self.closing and (yield from reader.accept(self.closing.strip())):
                return
            if not (yield from reader.accept(self.begin.strip())):
                return

    def _read_one(self, reader: Reader) -> Steps[None]:
        if self.prefixes:
            yield from reader.space()
            yield from reader.accept(*self.prefixes)
        separator = self.separator.strip()
        name, end = yield from reader.name(separator, *self.name_ends)
        if end != separator:
            # An id, which we replace by our own.
            yield from reader.collect(separator)
        if self.numbered:
            name = name.rpartition(":")[0] or name
        yield from reader.space()
        if (yield from reader.peek()) != "{":
            raise Malformed
        yield reader.begin(name)
        yield from reader.arguments()
        if self.end:
            yield from reader.space()
            yield from reader.accept(self.end.strip())

    def render(self, calls: Calls) -> str:
        each = [
            f"{self.begin}{self._name(name, number)}{self.separator}"
            f"{json.dumps(dict(arguments), ensure_ascii=False)}{self.end}"
            for number, (name, arguments) in enumerate(calls)
        ]
        return f"{self.opening}{self.between.join(each)}{self.closing}"

    def _name(self, name: str, number: int) -> str:
        return (self.prefixes[0] if self.prefixes else "") + name + (f":{number}" if self.numbered else "")

    def shape(self, lark: Lark, tools: Sequence[Tool], *, parallel: bool) -> Shape:
        prefix = self.prefixes[0] if self.prefixes else ""
        number = f" {lark.terminal('/:[0-9]{1,3}/')}" if self.numbered else ""
        one = lark.any_of(
            f"{lark.literal(prefix + tool.name)}{number} {lark.literal(self.separator)} "
            f"{lark.json(tool.grammar)} {lark.literal(self.end) if self.end else ''}"
            for tool in tools
        )
        again = lark.literal(self.between + self.begin)
        more = lark.more(f"{again} {one}", parallel=parallel)
        closing = lark.literal(self.closing) if self.closing else ""
        if self.opening:
            return Shape(self.opening, f"{lark.literal(self.begin)} {one} {more} {closing}")
        return Shape(self.begin, f"{one} {more} {closing}")
