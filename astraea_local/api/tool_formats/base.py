"""What all formats have in common: what they are given, and what they have to offer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from astraea_local.api.parts import AnswerPart
from astraea_local.api.tool_formats.lark import Lark, Shape
from astraea_local.api.tool_formats.reader import Reader, Steps


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    """JSON schema of the arguments."""
    grammar: str = '{"type": "object"}'
    """The same as llguidance reads it after `%json`."""


Calls = Sequence[tuple[str, Mapping[str, Any]]]
"""Names and arguments."""


class Unsupported(Exception):
    """The format cannot hold the output to this tool's schema; JSON can."""


class Parser(Protocol):
    """Takes an answer apart as it comes. Whatever it does not understand is text; nothing raises."""

    def push(self, text: str) -> list[AnswerPart]:
        """The parts that are certain now."""

    def finish(self) -> list[AnswerPart]:
        """The parts that were held back; call it once, at the end."""


class ToolFormat(Protocol):
    """How a family of models writes tool calls."""

    @property
    def name(self) -> str:
        """As in the profile, `model.tool_format`."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that are special tokens in such a model's vocabulary."""

    def read(self, reader: Reader) -> Steps[None]:
        """Reads an answer, behind the thoughts, up to its end."""

    def render(self, calls: Calls) -> str:
        """Calls as the model would write them."""

    def shape(self, lark: Lark, tools: Sequence[Tool], *, parallel: bool) -> Shape:
        """The rules that calls of these tools follow. Raises `Unsupported`."""


def markers_in(*texts: str) -> tuple[str, ...]:
    """What may be a token of its own in these texts: `<...>` and `[NAME]`."""
    found = (m for text in texts for m in re.findall(r"<[^<>\s]+>|\[/?[A-Z_]+\]", text))
    return tuple(dict.fromkeys(found))
