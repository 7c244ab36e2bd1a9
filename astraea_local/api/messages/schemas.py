"""Request bodies of the Messages API.

Content blocks and tools stay plain objects: clients send many kinds, and those that this server does not
know are passed over.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from astraea_local.api.schemas import _Body

Block = dict[str, Any]


class Turn(_Body):
    """One message; recent clients put instructions between the others."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block] = ""


class ToolChoice(_Body):
    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(_Body):
    type: str = "adaptive"
    """`disabled` asks for an answer without thoughts; anything else for one with them."""


class OutputConfig(_Body):
    effort: str | None = None
    format: dict[str, Any] | None = None


class MessageObject(BaseModel):
    """A message of the model, as far as clients rely on it."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: str | None
    stop_sequence: str | None
    usage: dict[str, Any]


class TokenCount(BaseModel):
    input_tokens: int


class MessagesPrompt(_Body):
    """What a message is made from; also all that counting its tokens takes."""

    # Sampling fields that Anthropic does not have are passed on to the conversation.
    model_config = ConfigDict(extra="allow")

    model: str = ""
    messages: list[Turn] = Field(min_length=1)
    system: str | list[Block] = ""
    tools: list[dict[str, Any]] = Field(default=[])
    tool_choice: ToolChoice = ToolChoice()
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()


class MessagesRequest(MessagesPrompt):
    """`POST /v1/messages`."""

    max_tokens: int | None = Field(default=None, ge=1)
    stream: bool = False
    stop_sequences: list[str] = Field(default=[])
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    metadata: dict[str, Any] | None = None
