"""What all formats have in common."""

from typing import Protocol

from astraea_local.api.parts import AnswerPart, Text


class Parser(Protocol):
    """Takes an answer apart as it comes. Whatever it does not understand is text; nothing raises."""

    def push(self, text: str) -> list[AnswerPart]:
        """The parts that are certain now."""

    def finish(self) -> list[AnswerPart]:
        """The parts that were held back; call it once, at the end."""


class PlainText:
    """An answer in which nothing is looked for."""

    def push(self, text: str) -> list[AnswerPart]:
        return [Text(text)]

    def finish(self) -> list[AnswerPart]:
        return []
