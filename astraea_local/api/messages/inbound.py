"""From a Messages request to the conversation it stands for."""

import json
from typing import Any

from astraea_local.api.dialect import effort_fields
from astraea_local.api.errors import ApiError
from astraea_local.api.messages.schemas import Block, MessagesPrompt, MessagesRequest, Turn
from astraea_local.api.schemas import ChatRequest
from astraea_local.api.transcript import History, omitted

_SAME = frozenset(ChatRequest.model_fields) - {
    "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "max_completion_tokens",
    "stop", "n", "logprobs", "top_logprobs", "stream_options",
}  # fmt: skip
# It holds a hash of the conversation, so that no two prompts would begin alike.
_BILLING = "x-anthropic-billing-header:"
_MEDIA = ("image", "document")


def conversation(body: MessagesPrompt) -> dict[str, Any]:
    """The fields of a `ChatRequest`. Raises `ApiError` for a block that is not what its type says."""
    given = {**dict(body), **(body.model_extra or {})}
    fields = {name: value for name, value in given.items() if name in _SAME and value is not None}
    history = History()
    history.system(_system(body.system))
    for i, turn in enumerate(body.messages):
        _add(history, turn, f"messages.{i}.content")
    fields["messages"] = history.messages()
    fields |= _tools(body) | effort_fields(body.output_config.effort)
    variables = fields.get("chat_template_kwargs", {})
    # Anything else than an object is refused where all fields are checked.
    if body.thinking is not None and isinstance(variables, dict):
        fields["chat_template_kwargs"] = {"enable_thinking": body.thinking.type != "disabled"} | variables
    if (schema := _schema(body)) is not None:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    if isinstance(body, MessagesRequest) and body.stop_sequences:
        fields["stop"] = body.stop_sequences
    return fields


def _system(system: str | list[Block]) -> str:
    blocks = [system] if isinstance(system, str) else [_text(block) for block in system]
    return "\n\n".join(filter(None, (_without_billing(block) for block in blocks)))


def _without_billing(text: str) -> str:
    if not text.startswith(_BILLING):
        return text
    return text.partition("\n")[2].lstrip("\n")


def _add(history: History, turn: Turn, where: str) -> None:
    content = turn.content
    if turn.role == "system":
        history.system(_system(content))
        return
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if turn.role == "assistant":
        for i, block in enumerate(blocks):
            _add_answer(history, block, f"{where}.{i}")
    else:
        _add_user(history, blocks, where)


def _add_answer(history: History, block: Block, where: str) -> None:
    match block.get("type"):
        case "text":
            history.assistant(_text(block))
        case "thinking":
            thought = block.get("thinking")
            history.reasoning(thought if isinstance(thought, str) else "")
        case "tool_use":
            name, given = _required(block, "name", where), block.get("input", {})
            history.call(_required(block, "id", where), name, given if isinstance(given, dict) else {})


def _add_user(history: History, blocks: list[Block], where: str) -> None:
    """Text between tool results stays where it is; neighbouring text is one message."""
    said: list[str] = []
    for i, block in enumerate(blocks):
        if block.get("type") != "tool_result":
            said.append(_text(block))
            continue
        if any(said):
            history.user("\n\n".join(filter(None, said)))
        said = []
        history.result(_required(block, "tool_use_id", f"{where}.{i}"), _result(block))
    if said or not blocks:
        history.user("\n\n".join(filter(None, said)))


def _result(block: Block) -> str:
    content = block.get("content")
    if isinstance(content, list):
        content = "\n".join(_text(part) if isinstance(part, dict) else str(part) for part in content)
    elif content is None:
        content = ""
    elif not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False)
    return content or ("the tool failed" if block.get("is_error") else "")


def _text(block: Block) -> str:
    """What a text model can read of a block; "" of those it need not know."""
    kind = block.get("type")
    if kind in _MEDIA:
        source = block.get("source")
        if isinstance(source, dict) and source.get("type") == "text":
            return str(source.get("data", ""))
        return omitted(str(kind))
    text = block.get("text")
    return text if isinstance(text, str) else ""


def _tools(body: MessagesPrompt) -> dict[str, Any]:
    tools = []
    for i, tool in enumerate(body.tools):
        # The others run at Anthropic.
        if tool.get("type", "custom") == "custom" or "input_schema" in tool:
            function: dict[str, Any] = {"name": _required(tool, "name", f"tools.{i}")}
            function |= {k: tool[k] for k in ("description", "strict") if tool.get(k) is not None}
            function["parameters"] = tool.get("input_schema")
            tools.append({"type": "function", "function": function})
    if not tools:
        return {}
    choice: Any = {"any": "required"}.get(body.tool_choice.type, body.tool_choice.type)
    if choice == "tool":
        choice = _named(body.tool_choice.name, tools)
    parallel = not body.tool_choice.disable_parallel_tool_use
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel}


def _named(name: str | None, tools: list[dict[str, Any]]) -> dict[str, Any]:
    if name not in {tool["function"]["name"] for tool in tools}:
        raise ApiError(400, f"tool_choice.name: {name!r} is not among tools", param="tool_choice.name")
    return {"type": "function", "function": {"name": name}}


def _schema(body: MessagesPrompt) -> Any:
    form = body.output_config.format or (body.model_extra or {}).get("output_format")
    return form.get("schema") if isinstance(form, dict) and form.get("type") == "json_schema" else None


def _required(block: dict[str, Any], key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str) or not value:
        param = f"{where}.{key}"
        raise ApiError(400, f"{param}: must be a text", param=param, code="invalid_value")
    return value
