"""Output items of a response while they grow: each knows its object and the events it causes."""

import uuid
from abc import ABC, abstractmethod
from typing import Any, Literal

Event = dict[str, Any]
Status = Literal["completed", "incomplete"]


class OutputItem(ABC):
    """One item of a response's output."""

    def __init__(self, prefix: str, kind: str, **fields: Any) -> None:
        self.data: dict[str, Any] = {
            "id": f"{prefix}_{uuid.uuid4().hex}",
            "type": kind,
            **fields,
            "status": "in_progress",
        }

    def begin(self) -> list[Event]:
        """Events right after the item was added."""
        return []

    @abstractmethod
    def grow(self, text: str) -> Event:
        """Takes more text in; returns the event that tells it."""

    def end(self, status: Status) -> list[Event]:
        """Completes `data`; returns the events before the item is done."""
        self.data["status"] = status
        return []


class _Parts(OutputItem):
    """An item whose text is one content part."""

    _part: str
    _event: str

    def __init__(self, prefix: str, kind: str, **fields: Any) -> None:
        super().__init__(prefix, kind, **fields, content=[])
        self._text: list[str] = []

    def begin(self) -> list[Event]:
        return [self._tell("response.content_part.added", part=self._as_part(""))]

    def grow(self, text: str) -> Event:
        self._text.append(text)
        return self._tell(f"response.{self._event}.delta", delta=text)

    def end(self, status: Status) -> list[Event]:
        text = "".join(self._text)
        part = self._as_part(text)
        self.data |= {"content": [part], "status": status}
        return [
            self._tell(f"response.{self._event}.done", text=text),
            self._tell("response.content_part.done", part=part),
        ]

    def _tell(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "content_index": 0, **fields}

    def _as_part(self, text: str) -> dict[str, Any]:
        return {"type": self._part, "text": text}


class MessageItem(_Parts):
    """The visible text."""

    _part = "output_text"
    _event = "output_text"

    def __init__(self) -> None:
        super().__init__("msg", "message", role="assistant")

    def _tell(self, kind: str, **fields: Any) -> Event:
        if kind.startswith("response.output_text"):
            fields["logprobs"] = []
        return super()._tell(kind, **fields)

    def _as_part(self, text: str) -> dict[str, Any]:
        return super()._as_part(text) | {"annotations": [], "logprobs": []}


class ReasoningItem(_Parts):
    """What the model thought before it answered."""

    _part = "reasoning_text"
    _event = "reasoning_text"

    def __init__(self) -> None:
        super().__init__("rs", "reasoning", summary=[])

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._text)


class CallItem(OutputItem):
    """A call of a function tool."""

    def __init__(self, call_id: str, name: str) -> None:
        super().__init__("fc", "function_call", call_id=call_id, name=name, arguments="")

    def grow(self, text: str) -> Event:
        self.data["arguments"] += text
        return {"type": "response.function_call_arguments.delta", "delta": text}

    def end(self, status: Status) -> list[Event]:
        super().end(status)
        done = {"type": "response.function_call_arguments.done", "name": self.data["name"]}
        return [done | {"arguments": self.data["arguments"]}]
