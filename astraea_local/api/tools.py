"""Which tool a request comes back from, and which family of jobs it belongs to.

A request that ends with the result of a tool call closes the wait for that tool. The three dialects say so
in their own shapes; what counts is the call that the last results answer.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from astraea_local.api.schemas import Message
from astraea_local.api.shell import program_of
from astraea_local.engine.binding import Tokens

# Instructions and tools stand at the beginning; behind it come paths, dates and the task itself.
_KIND_TOKENS = 48
_MAX_NAME = 64
_COMMAND_KEYS = ("command", "cmd", "script", "commands")
# Calls of the Responses API whose tool is named by their type.
_TYPED_CALLS = {"local_shell_call": "local_shell", "shell_call": "shell", "apply_patch_call": "apply_patch"}


@dataclass(frozen=True, slots=True)
class _Step:
    """One thing that a conversation consists of, as far as tools are concerned."""

    what: Literal["call", "result", "other"]
    id: object = None
    name: object = None
    arguments: object = None


def kind_of(prompt: Tokens) -> str:
    """A short name that prompts with the same beginning share; "" for one too short to tell."""
    if len(prompt) < _KIND_TOKENS:
        return ""
    return hashlib.blake2b(prompt[:_KIND_TOKENS].tobytes(), digest_size=4).hexdigest()


def tool_key(name: str, arguments: object) -> str:
    """`name`, or `name:verb` when the arguments (JSON text or an object) hold a shell command."""
    name, verb = _clean(name), _verb(arguments)
    return f"{name}:{verb}" if verb else name


def returned_tool(messages: Sequence[Message]) -> str:
    """The tool whose result a chat ends with: `name`, `name:verb` for a shell, "" if none.

    Of several calls answered together the first counts.
    """
    return _returned([step for message in messages for step in _chat_steps(message)])


def returned_tool_of_items(items: Sequence[object]) -> str:
    """The same for the `input` items of the Responses API."""
    return _returned([_item_step(item) for item in items if isinstance(item, Mapping)])


def returned_tool_of_blocks(messages: Sequence[object]) -> str:
    """The same for the `messages` of the Messages API, whose content consists of blocks."""
    steps = [step for m in messages if isinstance(m, Mapping) for step in _block_steps(m)]
    return _returned(steps)


def _returned(steps: list[_Step]) -> str:
    end = len(steps)
    while end and steps[end - 1].what == "result":
        end -= 1
    answered = {step.id for step in steps[end:] if isinstance(step.id, str)}
    begin = end
    while begin and steps[begin - 1].what == "call":
        begin -= 1
    calls = steps[begin:end] if end < len(steps) else []
    # A client that does not repeat the ids answers the calls in order.
    known = [call for call in calls if call.id in answered] or calls
    if not known or not isinstance(known[0].name, str):
        return ""
    return tool_key(known[0].name, known[0].arguments)


def _chat_steps(message: Message) -> Iterator[_Step]:
    if message.role in ("tool", "function"):
        yield _Step("result", message.tool_call_id)
        return
    calls = message.tool_calls if message.role == "assistant" else None
    if not calls:
        yield _Step("other")
    for call in calls or []:
        function = call.get("function")
        if not isinstance(function, dict):
            function = {}
        yield _Step("call", call.get("id"), function.get("name"), function.get("arguments"))


def _item_step(item: Mapping[str, Any]) -> _Step:
    kind = item.get("type")
    if not isinstance(kind, str):
        return _Step("other")
    if kind.endswith("_call_output"):
        return _Step("result", item.get("call_id"))
    if kind.endswith("_call"):
        name = item.get("name") or _TYPED_CALLS.get(kind)
        return _Step("call", item.get("call_id"), name, item.get("arguments") or item.get("action"))
    return _Step("other")


def _block_steps(message: Mapping[str, Any]) -> Iterator[_Step]:
    content = message.get("content")
    blocks = [b for b in content if isinstance(b, Mapping)] if isinstance(content, list) else []
    kinds = [block.get("type") for block in blocks]
    # A reminder beside the results does not change what the request comes back from.
    results = [b for b, kind in zip(blocks, kinds, strict=True) if kind == "tool_result"]
    calls = [b for b, kind in zip(blocks, kinds, strict=True) if kind == "tool_use"]
    for block in results:
        yield _Step("result", block.get("tool_use_id"))
    for block in calls:
        yield _Step("call", block.get("id"), block.get("name"), block.get("input"))
    if not results and not calls:
        yield _Step("other")


def _verb(arguments: object) -> str:
    """The program that a shell command runs, "" when the arguments hold none."""
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return ""
    if not isinstance(parsed, Mapping):
        return ""
    command = next((parsed[key] for key in _COMMAND_KEYS if key in parsed), None)
    return _clean(program_of(command))


def _clean(name: str) -> str:
    return "".join(c for c in name if c.isprintable() and c != ":")[:_MAX_NAME]
