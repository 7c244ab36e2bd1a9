"""Request bodies of the OpenAI-compatible endpoints, with llama.cpp's extra sampling fields.

Unknown fields are ignored, because clients send many; a known field of a wrong type or range is refused.
"""

from collections import Counter
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from astraea_local.engine.sampling import DRY_BREAKERS
from astraea_local.profile import PolicyName

_MAX_STOPS = 16
# An answer is searched for them at every token.
_MAX_STOP_CHARS = 500
_MAX_CHOICES = 16
# More than any agent has; a grammar is made of all of them.
_MAX_TOOLS = 512
# Of one earlier answer, whoever gave it.
_MAX_CALLS = 1024
# Texts of one request for embeddings, as at OpenAI.
_MAX_INPUTS = 2048


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        # Many clients write null for each field that they do not set.
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class TextPart(_Body):
    """One piece of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _a_refusal_is_text(self) -> "TextPart":
        if self.text is None:
            self.text = self.refusal
        return self


class Message(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = Field(default=None, max_length=_MAX_CALLS)
    tool_call_id: str | None = None
    reasoning_content: str | None = Field(
        default=None, validation_alias=AliasChoices("reasoning_content", "reasoning")
    )

    @field_validator("tool_calls")
    @classmethod
    def _named_calls(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for call in value or ():
            function = call.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise ValueError('each call needs {"function": {"name": ..., "arguments": ...}}')
        return value

    @field_validator("content")
    @classmethod
    def _only_text(cls, value: str | list[TextPart] | None) -> str | list[TextPart] | None:
        if isinstance(value, list):
            for part in value:
                if part.text is None:
                    raise ValueError(
                        f"parts of type {part.type!r} are not supported: this model reads text only"
                    )
        return value

    @property
    def text(self) -> str:
        """The content as one string."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text or "" for part in self.content)


class PolicyRequest(_Body):
    policy: PolicyName


class StreamOptions(_Body):
    include_usage: bool = False


class JsonSchemaFormat(_Body):
    name: str = "response"
    json_schema: dict[str, Any] | bool = Field(default=True, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self


class Generation(_Body):
    """What every kind of completion request has in common."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=_MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float = Field(default=0.8, ge=0, le=100)
    top_p: float = Field(default=0.95, ge=0, le=1)
    top_k: int = Field(default=40, ge=0)
    min_p: float = Field(default=0.05, ge=0, le=1)
    typical_p: float = Field(default=1.0, ge=0, le=1)
    repeat_penalty: float = Field(default=1.0, gt=0, le=100)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    """Another name of `repeat_penalty`."""
    repeat_last_n: int = Field(default=64, ge=0, le=65536)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    dry_multiplier: float = Field(default=0.0, ge=0, le=100)
    dry_base: float = Field(default=1.75, ge=0, le=100)
    dry_allowed_length: int = Field(default=2, ge=0, le=65536)
    dry_penalty_last_n: int = Field(default=4096, ge=0, le=65536)
    dry_sequence_breakers: list[str] = Field(default=list(DRY_BREAKERS), max_length=64)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    ignore_eos: bool = False
    grammar: str | None = None
    """A GBNF grammar that the output follows."""
    json_schema: dict[str, Any] | bool | None = None
    """A JSON schema that the output follows; `response_format` is OpenAI's way to say it."""
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    safety_identifier: str | None = None
    user: str | None = None
    service_tier: str | None = None
    """`priority` and `flex` move a job up or down by a queue."""
    nvext: dict[str, Any] | None = None
    """NVIDIA Dynamo's extension; `agent_hints.priority` is read."""

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> list[str]:
        stops = [] if value is None else [value] if isinstance(value, str) else value
        if len(stops) > _MAX_STOPS:
            raise ValueError(f"at most {_MAX_STOPS} stop strings are possible")
        if any(not s for s in stops):
            raise ValueError("a stop string must not be empty")
        if any(len(s) > _MAX_STOP_CHARS for s in stops):
            raise ValueError(f"a stop string has at most {_MAX_STOP_CHARS} characters")
        return stops

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value and not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in value):
            raise ValueError("keys must be token ids")
        return value

    @field_validator("dry_sequence_breakers")
    @classmethod
    def _encodable(cls, value: list[str]) -> list[str]:
        if any(0xD800 <= ord(c) < 0xE000 for breaker in value for c in breaker):
            raise ValueError("half of a surrogate pair is not a character")
        return value

    @field_validator("json_schema")
    @classmethod
    def _one_constraint(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("grammar") is not None:
            raise ValueError("grammar and json_schema exclude each other")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class FunctionTool(_Body):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[\w.:/-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments, an object; None = there are none."""
    strict: bool | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The same, whether or not the client sent one."""
        return self.parameters or {"type": "object", "properties": {}}


class Tool(_Body):
    type: Literal["function"] = "function"
    function: FunctionTool


class FunctionName(_Body):
    name: str


class NamedTool(_Body):
    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(_Body):
    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool] = Field(min_length=1, max_length=_MAX_TOOLS)


class ToolChoice(_Body):
    """One tool, which must be called, or some of them. The prompt shows all, so that its prefix stays."""

    type: Literal["function", "allowed_tools"] = "function"
    function: FunctionName | None = Field(default=None, validate_default=True)
    allowed_tools: AllowedTools | None = Field(default=None, validate_default=True)

    @field_validator("function", "allowed_tools")
    @classmethod
    def _is_there(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("type") == info.field_name:
            raise ValueError("Field required")
        return value

    @property
    def names(self) -> list[str]:
        """The tools that may be called."""
        if self.type == "function":
            return [self.function.name] if self.function else []
        return [tool.function.name for tool in self.allowed_tools.tools] if self.allowed_tools else []

    @property
    def must_call(self) -> bool:
        return self.allowed_tools is None or self.allowed_tools.mode == "required"


class ChatRequest(Generation):
    """`POST /v1/chat/completions`, and what the other chat dialects are turned into."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=_MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice = "auto"
    """`required` and a named tool constrain the output, so that the arguments fit the tool's schema."""
    parallel_tool_calls: bool = True
    """Whether one answer may hold several calls."""
    reasoning_format: Literal["auto", "none", "deepseek", "deepseek-legacy"] = "auto"
    """Where the model's thoughts go: `reasoning_content` (auto, deepseek), the content (none), or both."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """Given to templates that know it; `none` asks for an answer without thoughts."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the model's template, for example `enable_thinking`."""

    @field_validator("tools")
    @classmethod
    def _unique_names(cls, value: list[Tool] | None) -> list[Tool] | None:
        counts = Counter(tool.function.name for tool in value or ())
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"{min(twice)!r} is defined twice")
        return value or None

    @property
    def raw_tools(self) -> list[dict[str, Any]] | None:
        """The tools as templates expect them; in one order, so that the same tools are the same prompt."""
        return [
            {
                "type": "function",
                "function": {
                    "name": tool.function.name,
                    "description": tool.function.description or "",
                    "parameters": tool.function.arguments,
                },
            }
            for tool in self.tools or ()
        ] or None

    @field_validator("tool_choice")
    @classmethod
    def _choice_is_possible(cls, value: Any, info: ValidationInfo) -> Any:
        names = {tool.function.name for tool in info.data.get("tools") or ()}
        if value == "required" and not names:
            raise ValueError("'required' needs tools")
        for name in value.names if isinstance(value, ToolChoice) else ():
            if name not in names:
                raise ValueError(f"names {name!r}, which is not in tools")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _logprobs_on(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("logprobs") is False:
            raise ValueError("needs logprobs: true")
        return value


class CompletionRequest(Generation):
    """`POST /v1/completions`."""

    prompt: str | list[int] | list[str]
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, value: str | list[int] | list[str]) -> str | list[int] | list[str]:
        if len(value) == 0:
            raise ValueError("must not be empty")
        return value


class EmbeddingRequest(_Body):
    """`POST /v1/embeddings`."""

    model: str = ""
    input: str | list[str] | list[int] | list[list[int]]
    """A text, or the token ids of one; or several of either."""
    encoding_format: Literal["float", "base64"] = "float"
    """`base64`: the bytes of little-endian float32."""
    dimensions: int | None = Field(default=None, ge=1)
    """Nothing but the size that the model's embeddings have."""
    user: str | None = None

    @field_validator("input")
    @classmethod
    def _some_but_not_too_many(cls, value: Any) -> Any:
        if len(value) == 0:
            raise ValueError("must not be empty")
        if isinstance(value, list) and not isinstance(value[0], int) and len(value) > _MAX_INPUTS:
            raise ValueError(f"{len(value):,} inputs are more than one request may have ({_MAX_INPUTS:,})")
        return value

    @property
    def inputs(self) -> dict[str, str | list[int]]:
        """Each input by what it is called in an error."""
        given = self.input
        if isinstance(given, str):
            return {"input": given}
        if isinstance(given[0], int):
            return {"input": given}
        return {f"input.{i}": cast("str | list[int]", each) for i, each in enumerate(given)}


class TokenizeRequest(_Body):
    """`POST /tokenize`."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(_Body):
    """`POST /detokenize`."""

    tokens: list[int]
