"""Reading an answer while it comes in.

A format's reading is a generator that yields parts, and None where it must wait for more text. So a
format is written as if the whole answer were there, and every answer can be cut anywhere.
"""

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from astraea_local.api.parts import AnswerPart, Text, ToolArguments, ToolCallBegun

_T = TypeVar("_T")
Steps = Generator[AnswerPart | None, None, _T]

_MAX_NAME = 256
_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SCALAR_END = re.compile(r"[\s,\]}<;]")
_PAIRS = {"}": "{", "]": "["}


class Malformed(Exception):
    """This is not a call after all."""


class Reader:
    """The text that came and was not yet read, and the calls found so far."""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]], new_id: Callable[[], str]) -> None:
        """`tools` are the schemas of the known ones by name; other names make no call."""
        self.tools = tools
        self.ended = False
        self.calls = 0
        self._new_id = new_id
        self._text = ""
        self._record: list[str] | None = None
        self._dropped = ""

    def add(self, text: str) -> None:
        self._text += text

    # -- calls -------------------------------------------------------------------------------------

    def begin(self, name: str) -> ToolCallBegun:
        """The start of a call. Raises `Malformed` for a name that no tool has."""
        if name not in self.tools:
            raise Malformed
        self.calls += 1
        return ToolCallBegun(self.calls - 1, self._new_id(), name)

    def fragment(self, text: str) -> ToolArguments:
        """More of the last call's arguments."""
        # Half of a surrogate pair, which no answer could be sent with, as JSON spells it.
        return ToolArguments(self.calls - 1, _SURROGATE.sub(lambda m: f"\\u{ord(m[0]):04x}", text))

    def attempt(self, opening: str, steps: Steps[None]) -> Steps[bool]:
        """Reads what should be calls behind `opening`; returns whether it was.

        If not, `opening` is text, and what follows is there to be read anew.
        """
        before, opening = self.calls, self._dropped + opening
        self._record, self._dropped = [], ""
        try:
            yield from steps
            self._record = None
            return True
        except Malformed:
            record, self._record = "".join(self._record or ()), None
            # What was begun cannot be taken back; then the answer goes on behind it.
            if self.calls == before:
                self._text = record + self._text
                if opening:
                    yield Text(opening)
            elif self.ended:
                self._text = ""
            return False

    # -- text --------------------------------------------------------------------------------------

    def until(self, markers: Sequence[str], make: Callable[[str], AnswerPart]) -> Steps[str]:
        """Passes text on up to a marker, and returns that; "" at the end.

        White space right before a marker is dropped, since templates put their own there.
        """
        held = ""
        while True:
            at, marker = self._first(markers)
            if marker:
                found = held + self._take(at)
                self._take(len(marker))
                text = found.rstrip()
                self._dropped = found[len(text) :]
                if text:
                    yield make(text)
                return marker
            keep = 0 if self.ended else self._overlap(markers)
            text = held + self._take(len(self._text) - keep)
            certain = text if self.ended else text.rstrip()
            held = text[len(certain) :]
            if certain:
                yield make(certain)
            if self.ended:
                return ""
            yield None

    def collect(self, *markers: str) -> Steps[tuple[str, str]]:
        """The text up to a marker, and that marker. Raises `Malformed` when the answer ends before."""
        while True:
            at, marker = self._first(markers)
            if marker:
                text = self._take(at)
                self._take(len(marker))
                return text, marker
            yield from self._wait()

    def space(self) -> Steps[None]:
        """Skips white space."""
        while True:
            self._take(len(self._text) - len(self._text.lstrip()))
            if self._text or self.ended:
                return
            yield None

    def accept(self, *options: str) -> Steps[str]:
        """Skips that of the options with which the text goes on, and returns it; "" if none."""
        while True:
            # The longest first, and no shorter one while a longer one may still come.
            for option in sorted(options, key=len, reverse=True):
                if self._text.startswith(option):
                    self._take(len(option))
                    return option
                if not self.ended and option.startswith(self._text):
                    break
            else:
                return ""
            yield None

    def lead(self, marker: str) -> Steps[bool]:
        """Skips white space and a marker, if that follows; else nothing."""
        while True:
            text = self._text.lstrip()
            if text.startswith(marker):
                self._take(len(self._text) - len(text) + len(marker))
                return True
            if self.ended or not marker.startswith(text):
                return False
            yield None

    def expect(self, *options: str) -> Steps[str]:
        """The same. Raises `Malformed` if none."""
        found = yield from self.accept(*options)
        if not found:
            raise Malformed
        return found

    def peek(self) -> Steps[str]:
        """The next character, unread; "" at the end."""
        while not self._text and not self.ended:
            yield None
        return self._text[:1]

    def name(self, *ends: str) -> Steps[tuple[str, str]]:
        """A tool's name up to one of `ends`, and that end. Raises `Malformed` when it grows too long."""
        while True:
            at, end = self._first(ends)
            if end and at <= _MAX_NAME:
                text = self._take(at)
                self._take(len(end))
                return text.strip(), end
            if len(self._text) > _MAX_NAME:
                raise Malformed
            yield from self._wait()

    # -- JSON --------------------------------------------------------------------------------------

    def json_pieces(self) -> Generator[str | None, None, None]:
        """A JSON value as it comes, unchanged. Raises `Malformed` where brackets do not match."""
        first = yield from self.peek()  # type: ignore[misc]
        if first in ("{", "["):
            yield from self._brackets()
        elif first == '"':
            yield from self._string()
        else:
            yield from self._scalar()

    def json_text(self) -> Steps[str]:
        """The same, whole."""
        pieces = []
        for piece in self.json_pieces():
            if piece is None:
                yield None
            else:
                pieces.append(piece)
        return "".join(pieces)

    def json_string(self) -> Steps[str]:
        """A JSON string, decoded. Raises `Malformed` if it is none."""
        if (yield from self.peek()) != '"':
            raise Malformed
        text = yield from self.json_text()
        try:
            return str(json.loads(text))
        except ValueError:
            raise Malformed from None

    def python_list(self) -> Steps[str]:
        """A list in Python's notation. Raises `Malformed` where its brackets do not match."""
        scan = _PythonBrackets()
        at = 0
        while not scan.closed:
            if at == len(self._text):
                yield from self._wait()
                continue
            scan.step(self._text[at])
            at += 1
        return self._take(at)

    def arguments(self) -> Steps[None]:
        """Passes a JSON object on as the last call's arguments; also when it is a string that holds one."""
        if (yield from self.peek()) == "{":
            for piece in self.json_pieces():
                yield None if piece is None else self.fragment(piece)
            return
        text = yield from self.json_text()
        yield self.fragment(_unpacked(text))

    def _brackets(self) -> Generator[str | None, None, None]:
        stack: list[str] = []
        in_string = False
        at = 0
        while True:
            found = (_INSIDE if in_string else _OUTSIDE).search(self._text, at)
            if found is None or (found[0] == "\\" and found.end() == len(self._text)):
                # A backslash waits for what it escapes.
                end = len(self._text) if found is None else found.start()
                if end:
                    yield self._take(end)
                at = 0
                yield from self._wait_for_json()
                continue
            at = found.end()
            mark = found[0]
            if mark == "\\":
                at += 1
            elif mark == '"':
                in_string = not in_string
            elif mark in _PAIRS:
                if not stack or stack.pop() != _PAIRS[mark]:
                    # The same parts, however the text was cut: what came before may have been told.
                    if found.start():
                        yield self._take(found.start())
                    raise Malformed
                if not stack:
                    yield self._take(at)
                    return
            else:
                stack.append(mark)

    def _string(self) -> Generator[str | None, None, None]:
        at = 1
        while True:
            found = _INSIDE.search(self._text, at)
            if found is None or (found[0] == "\\" and found.end() == len(self._text)):
                at = len(self._text) if found is None else found.start()
                yield from self._wait_for_json()
                continue
            at = found.end()
            if found[0] == '"':
                yield self._take(at)
                return
            at += 1

    def _scalar(self) -> Generator[str | None, None, None]:
        while True:
            found = _SCALAR_END.search(self._text)
            if found or self.ended:
                text = self._take(found.start() if found else len(self._text))
                try:
                    json.loads(text)
                except ValueError:
                    raise Malformed from None
                yield text
                return
            yield None

    def _wait_for_json(self) -> Generator[None, None, None]:
        if self.ended:
            raise Malformed
        yield None

    # -- the buffer --------------------------------------------------------------------------------

    def _wait(self) -> Steps[None]:
        if self.ended:
            raise Malformed
        yield None

    def _take(self, count: int) -> str:
        text, self._text = self._text[:count], self._text[count:]
        if self._record is not None:
            self._record.append(text)
        return text

    def _first(self, markers: Sequence[str]) -> tuple[int, str]:
        """Place and text of the marker that comes first, of two at one place the longer; (-1, "") if none."""
        found = [(at, -len(m), m) for m in markers if (at := self._text.find(m)) >= 0]
        if not found:
            return -1, ""
        at, _, marker = min(found)
        return at, marker

    def _overlap(self, markers: Sequence[str]) -> int:
        """Length of the longest proper beginning of a marker with which the text ends."""
        longest = 0
        for marker in markers:
            for length in range(min(len(self._text), len(marker) - 1), longest, -1):
                if self._text.endswith(marker[:length]):
                    longest = length
                    break
        return longest


class _PythonBrackets:
    """Where brackets close, quotes of both kinds considered."""

    def __init__(self) -> None:
        self.closed = False
        self._stack: list[str] = []
        self._quote = ""
        self._escaped = False

    def step(self, char: str) -> None:
        """Goes on by a character. Raises `Malformed`."""
        if self._quote:
            if self._escaped or char == "\\":
                self._escaped = not self._escaped
            elif char == self._quote:
                self._quote = ""
        elif char in "\"'":
            self._quote = char
        elif char in "([{":
            self._stack.append(char)
        elif char in ")]}":
            if not self._stack or self._stack.pop() != {")": "(", **_PAIRS}[char]:
                raise Malformed
            self.closed = not self._stack


class Script:
    """A parser that runs a reading."""

    def __init__(self, reader: Reader, steps: Steps[None]) -> None:
        self._reader = reader
        self._steps = steps

    def push(self, text: str) -> list[AnswerPart]:
        self._reader.add(text)
        return self._run()

    def finish(self) -> list[AnswerPart]:
        self._reader.ended = True
        return self._run()

    def _run(self) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        for part in self._steps:
            if part is None:
                break
            parts.append(part)
        return parts


def _unpacked(text: str) -> str:
    """The object that a JSON string holds; "{}" for null and for nothing."""
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        raise Malformed from None
    if value is None:
        return "{}"
    if isinstance(value, str):
        try:
            return value if isinstance(json.loads(value), dict) else text
        except (ValueError, RecursionError):
            return text
    raise Malformed
