"""How one conversation is asked, what its answer may be, and how that is read."""

import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from astraea_local.api.constraints import SchemaFault, answer_schema, schema_grammar
from astraea_local.api.errors import ApiError
from astraea_local.api.limits import check_schema
from astraea_local.api.schemas import ChatRequest, ToolChoice
from astraea_local.api.schemas import Tool as ToolDefinition
from astraea_local.api.templates import ChatTemplate
from astraea_local.api.tool_formats.base import Parser, Tool, Unsupported
from astraea_local.api.tool_formats.lark import Marker
from astraea_local.api.tool_formats.reader import Reader, Script
from astraea_local.api.tool_formats.registry import HERMES
from astraea_local.api.tool_formats.thinking import AnswerForm, Style, Wanted, thinking_of
from astraea_local.engine.binding import Tokens, Vocab, json_grammar

_STYLES: dict[str, Style] = {"auto": "apart", "deepseek": "apart", "none": "text", "deepseek-legacy": "both"}
_ANY_OBJECT = json_grammar({"type": "object"})


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """One conversation, ready for the engine."""

    prompt: Tokens
    parser: Callable[[], Parser]
    """Makes the parser of one choice."""
    shown: tuple[int, ...] = ()
    """Special tokens that the parser needs to see."""
    guidance: str | None = None
    """The Lark grammar that the answer follows."""


class ChatPlanner:
    """Plans the conversations of one model."""

    def __init__(self, template: ChatTemplate, vocab: Vocab, tokenize: Callable[[str], Tokens]) -> None:
        """`tokenize` takes a rendered prompt."""
        self._template = template
        self._vocab = vocab
        self._tokenize = tokenize
        self._thinking = thinking_of(template.source)
        self._marker_cache: dict[str, Marker | None] = {}

    def plan(self, request: ChatRequest) -> ChatPlan:
        """Prompt, constraint and parser of a conversation. Raises `ApiError`."""
        tools, must_call = _choice(request)
        extra = self._variables(request)
        text = self._template.render(request.messages, tools=request.raw_tools, extra=extra)
        opened = self._thinking is not None and text.rstrip().endswith(self._thinking.opening)
        form = AnswerForm(self._template.tool_format if request.tools else None, self._thinking, opened)
        form, guidance = self._guidance(request, tools, form, must_call=must_call)
        readable = form if tools else AnswerForm(None, form.thinking, opened)
        markers = self._markers(form).values()
        schemas = {tool.function.name: tool.function.arguments for tool in tools}
        style = _STYLES[request.reasoning_format]
        new_id = _short_id if self._template.traits.short_ids else _long_id

        def parser() -> Parser:
            reader = Reader(schemas, new_id)
            return Script(reader, readable.read(reader, style))

        shown = tuple(marker.token for marker in markers if marker.control)
        return ChatPlan(self._tokenize(text), parser, shown, guidance)

    def _variables(self, request: ChatRequest) -> dict[str, Any]:
        """What the template is told beside the messages."""
        variables: dict[str, Any] = {}
        if request.reasoning_effort == "none":
            variables["enable_thinking"] = False
        elif request.reasoning_effort is not None:
            variables["reasoning_effort"] = request.reasoning_effort
        variables |= request.chat_template_kwargs or {}
        # DeepSeek's templates have their own name for it.
        if "enable_thinking" in variables:
            variables.setdefault("thinking", variables["enable_thinking"])
        return variables

    def _guidance(
        self, request: ChatRequest, tools: list[ToolDefinition], form: AnswerForm, *, must_call: bool
    ) -> tuple[AnswerForm, str | None]:
        """The grammar, and the form of the answer, which is plainer where the model's own cannot be held."""
        content = _content(request)
        if request.grammar is not None or (content is None and not request.tools):
            return form, None
        strict = [_is_strict(tool, must_call=must_call) for tool in tools]
        known, traits = request.tools or [], self._template.traits
        wanted = Wanted(
            tools=[
                _prepared(tool, known.index(tool), exact=exact)
                for tool, exact in zip(tools, strict, strict=True)
            ],
            must_call=must_call,
            parallel=request.parallel_tool_calls and (traits.several_calls or not traits.calls),
            content=content,
        )
        try:
            return form, form.grammar(wanted, self._markers(form), exact=any(strict))
        except Unsupported:
            form = AnswerForm(HERMES, form.thinking, form.opened)
            return form, form.grammar(wanted, self._markers(form), exact=any(strict))

    def _markers(self, form: AnswerForm) -> dict[str, Marker]:
        """Those of the form's texts that are single tokens of this model."""
        for text in form.markers:
            if text not in self._marker_cache:
                self._marker_cache[text] = self._marker(text)
        found = ((text, self._marker_cache[text]) for text in form.markers)
        return {text: marker for text, marker in found if marker is not None}

    def _marker(self, text: str) -> Marker | None:
        tokens = self._vocab.tokenize(text, add_special=False, parse_special=True)
        if len(tokens) != 1:
            return None
        return Marker(int(tokens[0]), self._vocab.is_control(int(tokens[0])))


def _choice(request: ChatRequest) -> tuple[list[ToolDefinition], bool]:
    """The tools that the answer may call, and whether it has to."""
    tools, choice = request.tools or [], request.tool_choice
    if isinstance(choice, ToolChoice):
        allowed = set(choice.names)
        return [tool for tool in tools if tool.function.name in allowed], choice.must_call
    return ([] if choice == "none" else tools), choice == "required"


def _content(request: ChatRequest) -> str | None:
    form = request.response_format
    if form is not None and form.type == "json_object":
        return _ANY_OBJECT
    if form is not None and form.json_schema is not None:
        return answer_schema(form.json_schema.json_schema, "response_format.json_schema.schema")
    if request.json_schema is not None:
        return answer_schema(request.json_schema, "json_schema")
    return None


def _is_strict(tool: ToolDefinition, *, must_call: bool) -> bool:
    """Whether arguments have to fit the whole schema, or it is refused."""
    return tool.function.strict is True or (must_call and tool.function.strict is not False)


def _prepared(tool: ToolDefinition, index: int, *, exact: bool) -> Tool:
    """The tool with its grammar. Raises `ApiError` for a strict one that output cannot be held to."""
    name = tool.function.name
    schema = {**tool.function.arguments, "type": "object"}
    check_schema(schema, f"tools.{index}.function.parameters")
    try:
        return Tool(name, schema, schema_grammar(schema, lenient=not exact))
    except SchemaFault as fault:
        if not exact:
            return Tool(name, schema, _ANY_OBJECT)
        param = f"tools.{index}.function.parameters"
        raise ApiError(400, f"{param}: {fault}", param=param, code="invalid_json_schema") from None


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
