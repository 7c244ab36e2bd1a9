"""A conversation as a chat template can show it: what it does not know is said in words that it does."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from astraea_local.api.schemas import Message
from astraea_local.api.tool_formats.base import ToolFormat

Plain = dict[str, Any]

_SHORT_ID = 9
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Traits:
    """What a chat template can show."""

    system: bool = True
    """System messages."""
    late_system: bool = True
    """System messages behind others."""
    tools: bool = False
    """Definitions of tools."""
    described: bool = False
    """Whether each argument must have a description."""
    bare_list: bool = False
    """Whether no tools have to be an empty list."""
    calls: bool = False
    """Calls of assistants, and results."""
    several_calls: bool = False
    """More than one call in a message."""
    text_hides_calls: bool = False
    """Whether a message with text shows no calls."""
    object_arguments: bool = True
    """Whether arguments are given as an object, or as JSON text."""
    short_ids: bool = False
    """Whether ids of calls have exactly nine letters and digits."""
    thoughts_key: str = "reasoning_content"
    """The member of a message in which it looks for thoughts."""


def conversation(
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None,
    traits: Traits,
    tool_format: ToolFormat,
) -> list[Plain]:
    """The messages with content that is always text, in roles and members that the template knows."""
    plain = _with_calls(messages, traits) if traits.calls else _in_words(messages, traits, tool_format)
    if not traits.late_system:
        plain = _without_late_system(plain)
    if tools and not traits.tools:
        plain = _with_description(plain, describe(tools, tool_format))
    return plain if traits.system else _without_system(plain)


def definitions(tools: list[dict[str, Any]] | None, traits: Traits) -> list[dict[str, Any]] | None:
    """The tools as the template wants them, None where it has no place for them."""
    if not tools or not traits.tools:
        return [] if traits.bare_list else None
    return [_described(tool) for tool in tools] if traits.described else tools


def describe(tools: list[dict[str, Any]], tool_format: ToolFormat) -> str:
    """Tools in words, for a template that has no place for them."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    example = tool_format.render([("NAME", {"ARGUMENT": "VALUE"})])
    return (
        "You can call functions. These exist, each with a JSON schema of its arguments:\n"
        f"{listed}\n\n"
        f"To call one, end your answer with its name and arguments in exactly this form:\n{example}\n"
        "Its result will be given to you in <tool_response> tags. Call only what you need."
    )


def merged(messages: list[Plain]) -> list[Plain]:
    """The same with neighbours of one role made one message, and empty ones left out."""
    found: list[Plain] = []
    for each in _without_late_system(messages):
        message = dict(each)
        if message["role"] == "assistant" and not (message["content"] or message.get("tool_calls")):
            continue
        last = found[-1] if found else None
        if (
            last is not None
            and last["role"] == message["role"] != "tool"
            and not (last.get("tool_calls") or message.get("tool_calls"))
        ):
            last["content"] = "\n\n".join(filter(None, (last["content"], message["content"])))
        else:
            found.append(message)
    return found


def short_id(id_: str) -> str:
    """Nine letters and digits that stand for an id, always the same ones."""
    if len(id_) == _SHORT_ID and id_.isascii() and id_.isalnum():
        return id_
    number = int.from_bytes(hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    letters = []
    for _ in range(_SHORT_ID):
        number, index = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[index])
    return "".join(letters)


def _base(message: Message, traits: Traits) -> Plain:
    plain: Plain = {"role": message.role, "content": message.text}
    if message.role == "developer":
        plain["role"] = "system"
    if message.role == "function":
        plain["role"] = "tool"
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
        # gpt-oss wants no thoughts beside content.
        if traits.thoughts_key != "reasoning_content" and not plain["content"]:
            plain[traits.thoughts_key] = message.reasoning_content
    return plain


def _with_calls(messages: Sequence[Message], traits: Traits) -> list[Plain]:
    found: list[Plain] = []
    open_calls: list[Plain] = []
    for message in messages:
        plain = _base(message, traits)
        if message.tool_calls:
            open_calls = [_call(c, number, traits) for number, c in enumerate(message.tool_calls)]
            plain["tool_calls"] = list(open_calls)
            if traits.text_hides_calls:
                plain["content"] = ""
        if plain["role"] == "tool":
            _answer_call(plain, message, open_calls, traits)
        found.append(plain)
    return found if traits.several_calls else _one_by_one(found)


def _call(call: dict[str, Any], number: int, traits: Traits) -> Plain:
    function = call["function"]
    id_ = str(call.get("id") or f"call_{number}")
    return {
        "id": short_id(id_) if traits.short_ids else id_,
        "type": "function",
        "function": {"name": function["name"], "arguments": _arguments(function.get("arguments"), traits)},
    }


def _arguments(arguments: object, traits: Traits) -> Any:
    parsed = parsed_arguments(arguments)
    return parsed if traits.object_arguments else json.dumps(parsed, ensure_ascii=False)


def parsed_arguments(arguments: object) -> dict[str, Any]:
    """Arguments as an object, whatever a client, or a model before it, made of them."""
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            value = arguments
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"invalid_arguments": value}


def _answer_call(plain: Plain, message: Message, open_calls: list[Plain], traits: Traits) -> None:
    """Names the call that a result belongs to: by its id, else the first one without a result."""
    id_ = message.tool_call_id
    if id_ is not None and traits.short_ids:
        id_ = short_id(id_)
    call = next((c for c in open_calls if c["id"] == id_), open_calls[0] if open_calls else None)
    if call is not None:
        open_calls.remove(call)
        plain.setdefault("name", call["function"]["name"])
        id_ = id_ or call["id"]
    if id_ is not None:
        plain["tool_call_id"] = id_


def _one_by_one(messages: list[Plain]) -> list[Plain]:
    """Each call in a message of its own, its result behind it."""
    groups: list[list[Plain]] = []
    # Clients that number their calls begin anew with each answer, so only the last answer's are waited for.
    unanswered: dict[object, list[Plain]] = {}
    for message in messages:
        calls = message.get("tool_calls", ())
        if calls:
            unanswered = {}
        if len(calls) > 1:
            for number, call in enumerate(calls):
                content = message["content"] if number == 0 else ""
                group = [{**message, "content": content, "tool_calls": [call]}]
                groups.append(group)
                unanswered[call["id"]] = group
        elif message["role"] == "tool" and message.get("tool_call_id") in unanswered:
            unanswered.pop(message["tool_call_id"]).append(message)
        else:
            groups.append([message])
    return [message for group in groups for message in group]


def _in_words(messages: Sequence[Message], traits: Traits, tool_format: ToolFormat) -> list[Plain]:
    found: list[Plain] = []
    before = ""
    for message in messages:
        plain = _base(message, traits)
        if message.tool_calls:
            calls = [
                (c["function"]["name"], parsed_arguments(c["function"].get("arguments")))
                for c in message.tool_calls
            ]
            plain["content"] = "\n".join(filter(None, (plain["content"], tool_format.render(calls))))
        if plain["role"] == "tool":
            text = f"<tool_response>\n{plain['content']}\n</tool_response>"
            plain = {"role": "user", "content": text}
            if before == "tool":
                found[-1]["content"] += f"\n{text}"
                continue
        before = plain["role"] if message.role not in ("tool", "function") else "tool"
        found.append(plain)
    return found


def _with_description(messages: list[Plain], description: str) -> list[Plain]:
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": "\n\n".join(filter(None, (messages[0]["content"], description)))}
        return [first, *messages[1:]]
    return [{"role": "system", "content": description}, *messages]


def _without_late_system(messages: list[Plain]) -> list[Plain]:
    """System messages that do not stand at the beginning, as the user's."""
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return messages[:first] + [
        {**m, "role": "user"} if m["role"] == "system" else m for m in messages[first:]
    ]


def _described(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    properties = function["parameters"].get("properties")
    if not isinstance(properties, dict):
        return tool
    full = {
        name: {"description": "", **part} if isinstance(part, dict) else part
        for name, part in properties.items()
    }
    parameters = {**function["parameters"], "properties": full}
    return {**tool, "function": {**function, "parameters": parameters}}


def _without_system(messages: list[Plain]) -> list[Plain]:
    """System messages at the beginning of the next user message."""
    found: list[Plain] = []
    held: list[str] = []
    for message in messages:
        if message["role"] == "system":
            held.append(message["content"])
        elif message["role"] == "user" and held:
            found.append({**message, "content": "\n\n".join((*held, message["content"]))})
            held = []
        else:
            found.append(message)
    if held:
        found.append({"role": "user", "content": "\n\n".join(held)})
    return found
