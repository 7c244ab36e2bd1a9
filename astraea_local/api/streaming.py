"""Server-sent events of a completion: chunks, comments while nothing comes, one end."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.background import BackgroundTask

from astraea_local.api.errors import ApiError
from astraea_local.api.service import Call, Service
from astraea_local.engine.messages import Paused

_Event = TypeVar("_Event")


def stream(
    service: Service,
    call: Call,
    events: AsyncIterator[tuple[int, _Event]],
    chunks: Callable[[int, _Event], Iterator[dict[str, Any]]],
    usage_chunk: Callable[[], dict[str, Any]] | None,
) -> EventSourceResponse:
    """OpenAI's event stream; `chunks` turns an event of a choice into chunk objects.

    An error after the start of the stream is its last chunk.
    """

    async def told() -> AsyncIterator[ServerSentEvent]:
        try:
            async for index, event in events:
                if isinstance(event, Paused):
                    yield ServerSentEvent(comment=f"paused: {event.reason}")
                for chunk in chunks(index, event):
                    yield ServerSentEvent(data=json.dumps(chunk, ensure_ascii=False))
        except ApiError as error:
            yield ServerSentEvent(data=json.dumps(error.body, ensure_ascii=False))
        else:
            if usage_chunk is not None:
                yield ServerSentEvent(data=json.dumps(usage_chunk(), ensure_ascii=False))
            yield ServerSentEvent(data="[DONE]")

    return respond(service, call, told())


def respond(
    service: Service,
    call: Call,
    events: AsyncIterator[ServerSentEvent],
    keepalive: Callable[[], ServerSentEvent] | None = None,
) -> EventSourceResponse:
    """The events as an answer; a client that leaves ends the segments.

    While nothing is said, `keepalive` makes what is sent every few seconds; by default it is a comment.
    """

    def comment() -> ServerSentEvent:
        return ServerSentEvent(comment=call.handles[0].phase)

    return EventSourceResponse(
        events,
        headers=call.headers,
        ping=service.profile.server.keepalive_s,
        ping_message_factory=keepalive or comment,
        # A client that left before the first event never started the generator.
        background=BackgroundTask(service.close, call),
        sep="\n",
    )
