"""A conversation in the form that chat templates take, built from dialects that tell it otherwise."""

import json
from typing import Any

_PARAGRAPH = "\n\n"
# Members of an assistant's message that are collected paragraph by paragraph.
_PARAGRAPHS = ("content", "reasoning_content")


class History:
    """Collects what was said, in order; what belongs to one assistant turn becomes one message."""

    def __init__(self) -> None:
        self._system: list[str] = []
        self._messages: list[dict[str, Any]] = []
        self._tools: dict[str, str] = {}

    def system(self, text: str) -> None:
        """Instructions. Templates take them at the beginning only, so later ones speak as the user."""
        if not text:
            return
        if self._messages:
            self.user(text)
        else:
            self._system.append(text)

    def user(self, text: str) -> None:
        """Something the user said."""
        self._messages.append({"role": "user", "content": text})

    def assistant(self, text: str) -> None:
        """Something the model said."""
        self._turn().setdefault("content", []).append(text)

    def reasoning(self, text: str) -> None:
        """Something the model thought."""
        if text:
            self._turn().setdefault("reasoning_content", []).append(text)

    def call(self, call_id: str, name: str, arguments: str | dict[str, Any]) -> None:
        """A tool call of the model; `arguments` as JSON text, or as the object it stands for."""
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        function = {"name": name, "arguments": arguments}
        self._turn().setdefault("tool_calls", []).append(
            {"id": call_id, "type": "function", "function": function}
        )
        self._tools[call_id] = name

    def result(self, call_id: str, text: str) -> None:
        """What a tool call gave."""
        message = {"role": "tool", "tool_call_id": call_id, "content": text}
        if name := self._tools.get(call_id):
            message["name"] = name
        self._messages.append(message)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation; it has a user's message, because many templates insist on one."""
        said = [_joined(message) for message in self._messages]
        if not any(message["role"] == "user" for message in said):
            said = [{"role": "user", "content": ""}, *said]
        if self._system:
            said = [{"role": "system", "content": _PARAGRAPH.join(self._system)}, *said]
        return said

    def _turn(self) -> dict[str, Any]:
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant"})
        return self._messages[-1]


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    """The message with one text for all paragraphs of what the model said, and thought."""
    if message["role"] != "assistant":
        return message
    texts = {k: _PARAGRAPH.join(filter(None, message[k])) for k in _PARAGRAPHS if k in message}
    return message | texts


def omitted(kind: str) -> str:
    """What stands for content that a text model cannot read; the conversation goes on without it."""
    return f"[{kind} omitted: this model reads text only]"
