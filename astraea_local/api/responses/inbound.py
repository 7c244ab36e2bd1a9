"""From a Responses request to the conversation it stands for."""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from astraea_local.api.dialect import effort_fields
from astraea_local.api.errors import ApiError
from astraea_local.api.responses.schemas import Item, ResponsesPrompt, ResponsesRequest, TextFormat
from astraea_local.api.schemas import ChatRequest
from astraea_local.api.transcript import History, omitted

_SEAL = "astraea:"
_REASONING = "reasoning.encrypted_content"
# Fields of the conversation that mean the same here, whether or not OpenAI's Responses have them.
_SAME = frozenset(ChatRequest.model_fields) - {
    "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "max_tokens",
    "max_completion_tokens", "n", "logprobs", "top_logprobs", "stream_options",
}  # fmt: skip
_MEDIA = {"input_image": "image", "input_file": "file", "input_audio": "audio", "input_video": "video"}


def conversation(body: ResponsesPrompt, earlier: Sequence[Item] = ()) -> dict[str, Any]:
    """The fields of a `ChatRequest`; `earlier` are the items that `previous_response_id` stands for.

    Raises `ApiError` for an item that is not what its type says.
    """
    given = {**dict(body), **(body.model_extra or {})}
    fields = {name: value for name, value in given.items() if name in _SAME and value is not None}
    fields["messages"] = _messages(body, earlier)
    tools, choice = tools_of(body)
    if tools:
        fields |= {"tools": tools, "tool_choice": choice, "parallel_tool_calls": body.parallel_tool_calls}
    if (form := _response_format(body.text.format)) is not None:
        fields["response_format"] = form
    if body.reasoning is not None:
        fields |= effort_fields(body.reasoning.effort)
    if isinstance(body, ResponsesRequest) and body.max_output_tokens is not None:
        fields["max_completion_tokens"] = body.max_output_tokens
    return fields


def input_items(body: ResponsesPrompt) -> list[Item]:
    """The request's own input, as items."""
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": body.input}] if body.input else []
    return body.input


def tools_of(body: ResponsesPrompt) -> tuple[list[dict[str, Any]], Any]:
    """Function tools and `tool_choice` as chat completions have them; other kinds of tools are left out."""
    tools = [tool for i, sent in enumerate(body.tools) if (tool := _tool(sent, i)) is not None]
    choice = body.tool_choice
    if isinstance(choice, dict):
        kind, name = choice.get("type"), _name(choice)
        if kind == "allowed_tools":
            choice = _allowed(choice, {t["function"]["name"] for t in tools})
        elif kind == "function" and name in {t["function"]["name"] for t in tools}:
            choice = {"type": "function", "function": {"name": name}}
        elif kind == "function":
            raise ApiError(400, f"tool_choice: {name!r} is not among tools", param="tool_choice")
        else:
            # A tool that only OpenAI runs cannot be forced here.
            choice = "auto"
    return tools, choice


def _allowed(choice: dict[str, Any], known: set[str]) -> Any:
    """The choice among those of its tools that are known: what only OpenAI runs cannot be called here."""
    sent = choice.get("tools")
    names = [_name(tool) for tool in sent if isinstance(tool, dict)] if isinstance(sent, list) else []
    tools = [{"type": "function", "function": {"name": name}} for name in names if name in known]
    if not tools:
        return "none"
    allowed = {"mode": choice.get("mode", "auto"), "tools": tools}
    return {"type": "allowed_tools", "allowed_tools": allowed}


def sealed(reasoning: str) -> str:
    """Reasoning in the opaque form that clients without storage send back unread."""
    return _SEAL + base64.b64encode(reasoning.encode()).decode("ascii")


def wants_sealed(body: ResponsesRequest) -> bool:
    """Whether the client asked for reasoning in that form."""
    return _REASONING in body.include


def _messages(body: ResponsesPrompt, earlier: Sequence[Item]) -> list[dict[str, Any]]:
    history = History()
    history.system(body.instructions or "")
    for item in earlier:
        _add(history, item, "previous_response_id")
    for i, item in enumerate(input_items(body)):
        _add(history, item, f"input.{i}")
    return history.messages()


def _add(history: History, item: Item, where: str) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        _add_message(history, item, where)
    elif kind == "reasoning":
        history.reasoning(_reasoning(item, where))
    elif kind == "function_call":
        name, arguments = _text_field(item, "name", where), item.get("arguments", "{}")
        history.call(_call_id(item), name, arguments if isinstance(arguments, str | dict) else "{}")
    elif kind == "custom_tool_call":
        history.call(_call_id(item), _text_field(item, "name", where), {"input": item.get("input", "")})
    elif kind in ("local_shell_call", "shell_call") and isinstance(item.get("action"), dict):
        history.call(_call_id(item), kind.removesuffix("_call"), item["action"])
    elif isinstance(kind, str) and kind.endswith("_call_output") and "output" in item:
        history.result(_call_id(item), _output(item["output"], f"{where}.output"))


def _add_message(history: History, item: Item, where: str) -> None:
    text = _content(item.get("content", ""), f"{where}.content")
    match item.get("role"):
        case "user":
            history.user(text)
        case "system" | "developer":
            history.system(text)
        case "assistant":
            history.assistant(text)
        case role:
            raise ApiError(
                400,
                f"{where}.role: {role!r} is none of user, assistant, system, developer",
                param=f"{where}.role",
                code="invalid_value",
            )


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise ApiError(400, f"{where}: must be a text or a list of parts", param=where, code="invalid_value")
    return "".join(_part(part, f"{where}.{i}") for i, part in enumerate(content))


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise ApiError(400, f"{where}: must be an object with a type", param=where, code="invalid_value")
    kind = part.get("type")
    if isinstance(kind, str) and kind in _MEDIA:
        return omitted(_MEDIA[kind])
    text = part.get("refusal" if kind == "refusal" else "text")
    return text if isinstance(text, str) else ""


def _output(output: object, where: str) -> str:
    """The text of a tool's result; an object that is no list of parts is read as JSON by the model."""
    if output is None or isinstance(output, str | list):
        return _content(output, where)
    return json.dumps(output, ensure_ascii=False)


def _reasoning(item: Item, where: str) -> str:
    if text := _content(item.get("content"), f"{where}.content"):
        return text
    secret = item.get("encrypted_content")
    if isinstance(secret, str) and secret.startswith(_SEAL):
        try:
            return base64.b64decode(secret.removeprefix(_SEAL), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _call_id(item: Item) -> str:
    return str(item.get("call_id") or item.get("id") or "")


def _text_field(item: Item, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise ApiError(400, f"{where}.{key}: must be a text", param=f"{where}.{key}", code="invalid_value")
    return value


def _tool(sent: dict[str, Any], index: int) -> dict[str, Any] | None:
    if sent.get("type") != "function":
        return None
    inner = sent.get("function")
    # Some clients wrap it as chat completions do.
    described = inner if isinstance(inner, dict) else sent
    function = {"name": _text_field(described, "name", f"tools.{index}")}
    for key in ("description", "parameters", "strict"):
        if described.get(key) is not None:
            function[key] = described[key]
    return {"type": "function", "function": function}


def _name(choice: dict[str, Any]) -> str:
    inner = choice.get("function")
    return str(inner.get("name") if isinstance(inner, dict) else choice.get("name"))


def _response_format(form: TextFormat) -> dict[str, Any] | None:
    if form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    if form.json_schema is None:
        raise ApiError(
            400, "text.format.schema: is missing", param="text.format.schema", code="invalid_value"
        )
    described = {"name": form.name, "schema": form.json_schema, "strict": form.strict}
    return {"type": "json_schema", "json_schema": described}
