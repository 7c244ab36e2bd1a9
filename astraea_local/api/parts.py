"""What an answer consists of, whatever dialect it is told in: text, reasoning, and tool calls."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """More of the visible text."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thinks aloud before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegun:
    """A tool call whose name is complete; calls of one answer come one after another."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """More of a call's arguments: a piece of JSON text."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


AnswerPart = Text | Reasoning | ToolCallBegun | ToolArguments
