"""From the parts of an answer to a message and the events that tell it."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

from astraea_local.api.parts import AnswerPart, Reasoning, Text, ToolArguments, ToolCallBegun

Event = dict[str, Any]

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
# Clients drop thinking without one; here there is nothing to be proved.
_SIGNATURE = "astraea"


class Outbound:
    """One message while it is made. What it yields are events in order."""

    def __init__(self, model: str) -> None:
        self._open: str | None = None
        self._texts: list[str] = []
        self.message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {},
        }

    @property
    def thinking(self) -> str:
        """All reasoning of the closed blocks."""
        return "".join(b["thinking"] for b in self.message["content"] if b["type"] == "thinking")

    def begin(self, usage: dict[str, Any]) -> Iterator[Event]:
        """The events before the first part."""
        self.message["usage"] = usage
        yield {"type": "message_start", "message": self.message | {"content": []}}
        yield {"type": "ping"}

    def part(self, part: AnswerPart) -> Iterator[Event]:
        """The events of one part of the answer."""
        match part:
            case Text(text) if text:
                yield from self._grow("text", {"text": ""}, {"type": "text_delta", "text": text}, text)
            case Reasoning(text) if text:
                delta = {"type": "thinking_delta", "thinking": text}
                yield from self._grow("thinking", {"thinking": "", "signature": ""}, delta, text)
            case ToolCallBegun(_, call_id, name):
                yield from self._start("tool_use", {"id": call_id, "name": name, "input": {}})
            case ToolArguments(_, fragment) if fragment and self._open == "tool_use":
                self._texts.append(fragment)
                yield self._delta({"type": "input_json_delta", "partial_json": fragment})

    def close(self) -> Iterator[Event]:
        """The events that end the last block."""
        if self._open is None:
            return
        block, text = self.message["content"][-1], "".join(self._texts)
        if self._open == "tool_use":
            block["input"] = _arguments(text)
        else:
            block[self._open] = text
        if self._open == "thinking":
            block["signature"] = _SIGNATURE
            yield self._delta({"type": "signature_delta", "signature": _SIGNATURE})
        yield {"type": "content_block_stop", "index": self._index}
        self._open = None

    def end(self, reason: str, stop: str, usage: dict[str, Any]) -> Iterator[Event]:
        """The last events, after `close`; `reason` and `stop` are those of `Finished`."""
        ended = {"stop_reason": _STOP_REASONS.get(reason, reason), "stop_sequence": None}
        if stop and reason == "stop":
            ended = {"stop_reason": "stop_sequence", "stop_sequence": stop}
        self.message |= ended | {"usage": usage}
        yield {"type": "message_delta", "delta": ended, "usage": usage}
        yield {"type": "message_stop"}

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1

    def _grow(self, kind: str, empty: dict[str, Any], delta: dict[str, Any], text: str) -> Iterator[Event]:
        if self._open != kind:
            yield from self._start(kind, empty)
        self._texts.append(text)
        yield self._delta(delta)

    def _start(self, kind: str, empty: dict[str, Any]) -> Iterator[Event]:
        yield from self.close()
        self._open, self._texts = kind, []
        block = {"type": kind, **empty}
        self.message["content"].append(block)
        yield {"type": "content_block_start", "index": self._index, "content_block": dict(block)}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _arguments(text: str) -> dict[str, Any]:
    """The object that a call's arguments are; an empty one where the end of the answer cut them off."""
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}
