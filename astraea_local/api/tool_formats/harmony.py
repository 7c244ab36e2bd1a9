"""gpt-oss: an answer is a series of messages, each with a channel and perhaps a recipient.

Thoughts are in `analysis`, calls go to `functions.NAME`, the rest is text. OpenAI's own library downloads
its vocabulary and wants its token ids; an answer of ours is text, in whatever vocabulary the GGUF has.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from astraea_local.api.parts import Reasoning, Text
from astraea_local.api.tool_formats.base import Calls, Tool, markers_in
from astraea_local.api.tool_formats.lark import Lark, Shape
from astraea_local.api.tool_formats.reader import Malformed, Reader, Steps

_START, _CHANNEL, _MESSAGE, _END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
_CONSTRAIN, _CALL = "<|constrain|>", "<|call|>"
_ENDS = (_END, _CALL, "<|return|>", _START)
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.:/-]+)")
_ANALYSIS = re.compile(r"(?:<\|channel\|>|^)\s*analysis")


@dataclass(frozen=True, slots=True)
class Harmony:
    """`<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>`."""

    name: str = "harmony"

    @property
    def markers(self) -> tuple[str, ...]:
        return markers_in(*_ENDS, _CHANNEL, _MESSAGE, _CONSTRAIN)

    def read(self, reader: Reader) -> Steps[None]:
        while (yield from reader.peek()):
            header: list[str] = []
            if not (yield from reader.attempt("", _header(reader, header))):
                if not (yield from reader.until((_START, _CHANNEL), Text)):
                    return
                continue
            if _RECIPIENT.search(header[0]):
                yield from reader.attempt("", _call(reader, header[0]))
            else:
                make = Reasoning if _ANALYSIS.search(header[0]) else Text
                yield from reader.until(_ENDS, make)

    def render(self, calls: Calls) -> str:
        return f"{_START}assistant".join(
            f"{_CHANNEL}commentary to=functions.{name} {_CONSTRAIN}json{_MESSAGE}"
            f"{json.dumps(dict(arguments), ensure_ascii=False)}{_CALL}"
            for name, arguments in calls
        )

    def shape(self, lark: Lark, tools: Sequence[Tool], *, parallel: bool) -> Shape:  # noqa: ARG002 - it ends
        """The recipient may stand before the channel, as the template writes it, or behind."""
        one = lark.any_of(
            f"({lark.literal(f'{_CHANNEL}commentary to=functions.{tool.name} {_CONSTRAIN}json{_MESSAGE}')}"
            f" | {lark.literal(f' to=functions.{tool.name}{_CHANNEL}commentary json{_MESSAGE}')}) "
            f"{lark.json(tool.grammar)}"
            for tool in tools
        )
        return Shape("", one, anchored=True)

    def start(self, lark: Lark, calls: Shape | None, content: str | None, *, must_call: bool) -> str:
        """A whole answer: thoughts and remarks, then calls or the final text, which `content` may be."""
        channels = lark.any_of((lark.literal(f"{_CHANNEL}analysis"), lark.literal(f"{_CHANNEL}commentary")))
        again = lark.literal(f"{_START}assistant")
        before = lark.rule(f"{channels} {lark.literal(_MESSAGE)} {lark.up_to(_END)} {again}")
        options = [calls.rest] if calls else []
        if not must_call:
            final = lark.literal(f"{_CHANNEL}final")
            form = f"({lark.literal(f' {_CONSTRAIN}json')})?"
            body = lark.free(without=(_END,)) if content is None else lark.json(content)
            options.append(f"{final} {form} {lark.literal(_MESSAGE)} {body}")
        return f"{before}* {lark.any_of(options)}"


def _header(reader: Reader, into: list[str]) -> Steps[None]:
    """What stands before `<|message|>`. Raises `Malformed` if it is no header."""
    text, _ = yield from reader.name(_MESSAGE)
    if text and not text.startswith(
        (_START, _CHANNEL, "assistant", "to=", "analysis", "commentary", "final")
    ):
        raise Malformed
    into.append(text)


def _call(reader: Reader, header: str) -> Steps[None]:
    found = _RECIPIENT.search(header)
    yield from reader.space()
    if found is None or (yield from reader.peek()) != "{":
        raise Malformed
    yield reader.begin(found[1])
    yield from reader.arguments()
    yield from reader.space()
    yield from reader.accept(*_ENDS)
