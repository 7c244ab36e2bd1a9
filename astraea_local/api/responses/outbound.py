"""From the parts of an answer to a response and the events that tell it."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

from astraea_local.api.errors import ApiError
from astraea_local.api.parts import AnswerPart, Reasoning, Text, ToolArguments, ToolCallBegun
from astraea_local.api.responses.inbound import sealed
from astraea_local.api.responses.items import (
    CallItem,
    Event,
    MessageItem,
    OutputItem,
    ReasoningItem,
    Status,
)

_Stage = Literal["created", "in_progress", "completed", "incomplete", "failed"]


class Outbound:
    """One response while it is made. What it yields are events in order, each with its number."""

    def __init__(self, about: dict[str, Any], *, seal: bool, clock: Callable[[], float]) -> None:
        """`about` is what the response repeats of its request, its `id` included; `clock` gives Unix time.

        With `seal` reasoning items also carry their text in a form that a client sends back unread.
        """
        self._clock = clock
        self._seal = seal
        self._number = 0
        self._item: OutputItem | None = None
        self.response: dict[str, Any] = {
            **about,
            "object": "response",
            "created_at": int(clock()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }

    @property
    def reasoning(self) -> str:
        """All reasoning so far."""
        return "".join(
            part["text"]
            for item in self.response["output"]
            if item["type"] == "reasoning"
            for part in item["content"]
        )

    def begin(self) -> Iterator[Event]:
        """The events before the first part."""
        yield self._lifecycle("created")
        yield self._lifecycle("in_progress")

    def part(self, part: AnswerPart) -> Iterator[Event]:
        """The events of one part of the answer."""
        match part:
            case Text(text):
                yield from self._grow(MessageItem, text)
            case Reasoning(text):
                yield from self._grow(ReasoningItem, text)
            case ToolCallBegun(_, call_id, name):
                yield from self._open(CallItem(call_id, name))
            case ToolArguments(_, fragment) if self._item is not None and fragment:
                yield self._of_item(self._item.grow(fragment))

    def close(self, reason: str) -> Iterator[Event]:
        """The events that end the last item; `reason` is that of `Finished`."""
        yield from self._close("incomplete" if reason == "length" else "completed")

    def end(self, reason: str, usage: dict[str, Any], more: dict[str, Any]) -> Iterator[Event]:
        """The last event, after `close`; `more` is added to the response."""
        self.response |= {"usage": usage, "completed_at": int(self._clock())} | more
        if reason == "length":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
            yield self._lifecycle("incomplete")
        else:
            yield self._lifecycle("completed")

    def fail(self, error: ApiError) -> Iterator[Event]:
        """The last event of a response that broke off."""
        code = error.code or ("server_error" if error.status >= 500 else "invalid_prompt")
        self.response["error"] = {"code": code, "message": error.message}
        yield self._lifecycle("failed")

    def _grow(self, kind: type[MessageItem] | type[ReasoningItem], text: str) -> Iterator[Event]:
        if not text:
            return
        if not isinstance(self._item, kind):
            yield from self._open(kind())
        assert self._item is not None
        yield self._of_item(self._item.grow(text))

    def _open(self, item: OutputItem) -> Iterator[Event]:
        yield from self._close("completed")
        self._item = item
        self.response["output"].append(item.data)
        yield self._numbered({"type": "response.output_item.added", **self._place, "item": dict(item.data)})
        for event in item.begin():
            yield self._of_item(event)

    def _close(self, status: Status) -> Iterator[Event]:
        item = self._item
        if item is None:
            return
        for event in item.end(status):
            yield self._of_item(event)
        if self._seal and isinstance(item, ReasoningItem):
            item.data["encrypted_content"] = sealed(item.text)
        yield self._numbered({"type": "response.output_item.done", **self._place, "item": dict(item.data)})
        self._item = None

    def _lifecycle(self, what: _Stage) -> Event:
        if what != "created":
            self.response["status"] = what
        snapshot = dict(self.response, output=list(self.response["output"]))
        return self._numbered({"type": f"response.{what}", "response": snapshot})

    def _of_item(self, event: Event) -> Event:
        assert self._item is not None
        return self._numbered({**event, "item_id": self._item.data["id"], **self._place})

    @property
    def _place(self) -> dict[str, int]:
        return {"output_index": len(self.response["output"]) - 1}

    def _numbered(self, event: Event) -> Event:
        event["sequence_number"] = self._number
        self._number += 1
        return event
