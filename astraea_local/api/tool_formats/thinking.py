"""Thoughts before an answer, and the whole of an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from astraea_local.api.parts import Reasoning, Text
from astraea_local.api.tool_formats.base import Tool, ToolFormat
from astraea_local.api.tool_formats.harmony import Harmony
from astraea_local.api.tool_formats.lark import Lark, Marker, Shape
from astraea_local.api.tool_formats.reader import Reader, Steps

Style = Literal["apart", "text", "both"]


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tags around a model's thoughts."""

    opening: str
    closing: str


_TAGS = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<mm:think>", "</mm:think>"),
    Thinking("<think:opensource>", "</think:opensource>"),
    Thinking("<|inner_prefix|>", "<|inner_suffix|>"),
    Thinking("<|channel>thought", "<channel|>"),
)


def thinking_of(template: str) -> Thinking | None:
    """The tags that a chat template knows, None if it knows none."""
    return next((t for t in _TAGS if t.opening in template or t.closing in template), None)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an answer may consist of."""

    tools: Sequence[Tool] = ()
    """Those that may be called."""
    must_call: bool = False
    parallel: bool = True
    content: str | None = None
    """The JSON that the text has to be, as llguidance reads it; None = any text."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How one answer is written: its thoughts, its text, its calls."""

    format: ToolFormat | None
    """None: no calls are looked for."""
    thinking: Thinking | None = None
    opened: bool = False
    """Whether the prompt ends inside the thoughts."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that may be special tokens of the model."""
        tags = (self.thinking.opening, self.thinking.closing) if self.thinking else ()
        return (*tags, *(self.format.markers if self.format else ()))

    def read(self, reader: Reader, style: Style) -> Steps[None]:
        """Reads an answer from its first character to its end."""
        for part in self._read(reader, style):
            if isinstance(part, Reasoning) and style != "apart":
                yield Text(part.text)
                if style == "text":
                    continue
            yield part

    def _read(self, reader: Reader, style: Style) -> Steps[None]:
        if self.thinking is not None:
            yield from self._read_thoughts(reader, self.thinking, style)
        if self.format is None:
            yield from reader.until((), Text)
        else:
            yield from self.format.read(reader)

    def _read_thoughts(self, reader: Reader, tags: Thinking, style: Style) -> Steps[None]:
        found = yield from reader.lead(tags.opening)
        if not (found or self.opened):
            return
        if found and style != "apart":
            yield Text(tags.opening)
        yield from reader.space()
        closed = yield from reader.until((tags.closing,), Reasoning)
        if closed and style != "apart":
            yield Text(tags.closing)
        yield from reader.space()

    def grammar(self, wanted: Wanted, markers: Mapping[str, Marker], *, exact: bool) -> str:
        """The Lark grammar of the answer. Raises `Unsupported`."""
        lark = Lark(markers, exact=exact)
        calls = None
        if self.format is not None and wanted.tools:
            calls = self.format.shape(lark, wanted.tools, parallel=wanted.parallel)
        if isinstance(self.format, Harmony):
            return lark.text(self.format.start(lark, calls, wanted.content, must_call=wanted.must_call))
        body = lark.any_of(self._bodies(lark, calls, wanted))
        if self.thinking is None:
            return lark.text(body)
        # Between the thoughts and what is not plain text; plain text has its own.
        gap = lark.terminal(r"/[ \n]{1,4}/")
        closing = lark.up_to(self.thinking.closing)
        if self.opened:
            return lark.text(f"{closing} {gap}? {body}")
        return lark.text(f"({lark.literal(self.thinking.opening)} {closing} {gap}?)? {body}")

    def _bodies(self, lark: Lark, calls: Shape | None, wanted: Wanted) -> list[str]:
        # Text that began with the tag of the thoughts would be taken for both.
        tag = () if self.thinking is None or self.opened else (self.thinking.opening,)
        if calls is None:
            return [self._without_calls(lark, tag) if wanted.content is None else lark.json(wanted.content)]
        forced = f"{lark.literal(calls.trigger)} {calls.rest}"
        if wanted.must_call:
            return [forced]
        if wanted.content is not None:
            return [lark.json(wanted.content), forced]
        if calls.anchored:
            return [lark.free(not_first=(*tag, calls.trigger)), forced]
        return [
            lark.free(without=(calls.trigger,), not_first=tag),
            f"{lark.up_to(calls.trigger, not_first=tag)} {calls.rest}",
        ]

    def _without_calls(self, lark: Lark, tag: tuple[str, ...]) -> str:
        """Text in which no call can begin, for a request that has tools but allows no call."""
        if self.format is None:
            return lark.free(not_first=tag)
        shape = self.format.shape(Lark({}, exact=False), (Tool("none"),), parallel=False)
        if shape.anchored:
            return lark.free(not_first=(*tag, shape.trigger))
        return lark.free(without=(shape.trigger,), not_first=tag)
