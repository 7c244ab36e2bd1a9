"""`/v1/messages`: answered, and its input counted."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from sse_starlette import ServerSentEvent

from astraea_local.api.conversation import Conversation, Logprobs, open_conversation
from astraea_local.api.dialect import ascii_json, chat_request, reasoning_tokens
from astraea_local.api.errors import ApiError
from astraea_local.api.messages.inbound import conversation
from astraea_local.api.messages.outbound import Event, Outbound
from astraea_local.api.messages.schemas import MessagesPrompt, MessagesRequest
from astraea_local.api.service import Service, until_disconnect
from astraea_local.api.streaming import respond
from astraea_local.api.tools import returned_tool_of_blocks
from astraea_local.engine.messages import Finished, Paused, Started

router = APIRouter()

_NAMES = {"stop": "stop_sequences", "response_format": "output_config.format"}


@router.post("/v1/messages")
async def create_message(request: Request, body: MessagesRequest) -> Response:
    """Answers a conversation."""
    service: Service = request.app.state.service
    chat = chat_request(conversation(body), _NAMES)
    # Clients put reminders behind a tool's result; the request comes back from the tool all the same.
    turns = [turn.model_dump() for turn in body.messages if turn.role != "system"]
    tool = returned_tool_of_blocks(turns)
    opened = await open_conversation(service, request, chat, endpoint="messages", tool=tool)
    answer = _Answer(service, opened)
    if body.stream:
        return respond(service, opened.call, answer.stream(), keepalive=_ping)
    try:
        message = await until_disconnect(request, answer.whole())
    finally:
        opened.close()
    if message is None:
        return Response(status_code=499)
    return ascii_json(message, opened.call.headers)


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, body: MessagesPrompt) -> dict[str, int]:
    """How many tokens a message's input has."""
    service: Service = request.app.state.service
    chat = chat_request(conversation(body), _NAMES)
    plan = await asyncio.to_thread(service.text.chat_plan, chat)
    return {"input_tokens": len(plan.prompt)}


class _Answer:
    """One message from its first event to its last."""

    def __init__(self, service: Service, opened: Conversation) -> None:
        self._service = service
        self._opened = opened
        self._out = Outbound(service.text.name)
        self._begun = False

    async def whole(self) -> dict[str, Any]:
        """The message once it is complete. Raises `ApiError`."""
        async for _ in self._events():
            pass
        return self._out.message | {"astraea": self._opened.call.timings}

    async def stream(self) -> AsyncIterator[ServerSentEvent]:
        """Its events; a failure is the last one."""
        try:
            async for event in self._events():
                yield _sse(event) if isinstance(event, dict) else ServerSentEvent(comment=event)
        except ApiError as error:
            yield _sse(error.anthropic_body)

    async def _events(self) -> AsyncIterator[Event | str]:
        """Events, and comments on what happens meanwhile."""
        out = self._out
        async for _, event in self._opened.events():
            if isinstance(event, Paused):
                yield f"paused: {event.reason}"
                continue
            if not self._begun:
                # Not before the segment has its slot: only then it is known how much was cached.
                self._begun = True
                cached = event.cached if isinstance(event, Started) else 0
                for told in out.begin(self._usage(cached)):
                    yield told
            if isinstance(event, Finished):
                for told in out.close():
                    yield told
                for told in out.end(event.reason, event.stop, self._final_usage(event)):
                    yield told
            elif not isinstance(event, Started | Logprobs):
                for told in out.part(event):
                    yield told

    def _usage(self, cached: int) -> dict[str, Any]:
        """Anthropic counts cached tokens beside the input's, not among them."""
        return {
            "input_tokens": len(self._opened.call.prompt) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 0,
        }

    def _final_usage(self, finished: Finished) -> dict[str, Any]:
        thought = reasoning_tokens(self._service, self._opened.call, self._out.thinking)
        return self._usage(finished.cached_tokens) | {
            "output_tokens": finished.output_tokens,
            "output_tokens_details": {"thinking_tokens": thought},
        }


def _ping() -> ServerSentEvent:
    return _sse({"type": "ping"})


def _sse(event: Event) -> ServerSentEvent:
    return ServerSentEvent(event=event["type"], data=json.dumps(event, ensure_ascii=False))
