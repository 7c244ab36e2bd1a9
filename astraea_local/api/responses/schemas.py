"""Request bodies of the Responses API.

Items and tools stay plain objects: clients send many kinds, and those that this server does not know
are passed over.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from astraea_local.api.schemas import _Body

Item = dict[str, Any]


class TextFormat(_Body):
    """The form that the answer's text must have."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "response"
    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextSettings(_Body):
    format: TextFormat = TextFormat()


class Reasoning(_Body):
    effort: str | None = None


class ResponseObject(BaseModel):
    """A response, as far as clients rely on it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[Item]
    usage: dict[str, Any] | None


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: bool


class InputTokens(BaseModel):
    object: Literal["response.input_tokens"]
    input_tokens: int


class ResponsesPrompt(_Body):
    """What a response is made from; also all that counting its tokens takes."""

    # Sampling fields that OpenAI does not have are passed on to the conversation.
    model_config = ConfigDict(extra="allow")

    model: str = ""
    input: str | list[Item] = ""
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] = Field(default=[])
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: TextSettings = TextSettings()
    reasoning: Reasoning | None = None


class ResponsesRequest(ResponsesPrompt):
    """`POST /v1/responses`."""

    stream: bool = False
    store: bool = True
    """Whether the response can be continued by its id."""
    include: list[str] = Field(default=[])
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    metadata: dict[str, Any] | None = None
    background: bool = False
    prompt: dict[str, Any] | None = None

    @field_validator("background")
    @classmethod
    def _in_the_foreground(cls, value: bool) -> bool:
        if value:
            raise ValueError("responses are not made in the background here: leave it out and use stream")
        return value

    @field_validator("prompt")
    @classmethod
    def _no_templates(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            raise ValueError("no prompt templates are stored here: send instructions and input")
        return value
