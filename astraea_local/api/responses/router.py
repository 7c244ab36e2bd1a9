"""`/v1/responses`: made, looked up, deleted, and their input counted."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from sse_starlette import ServerSentEvent

from astraea_local.api.conversation import Conversation, Logprobs, open_conversation
from astraea_local.api.dialect import ascii_json, chat_request, reasoning_tokens
from astraea_local.api.errors import ApiError
from astraea_local.api.responses.inbound import conversation, input_items, wants_sealed
from astraea_local.api.responses.items import Event
from astraea_local.api.responses.outbound import Outbound
from astraea_local.api.responses.schemas import Item, ResponsesPrompt, ResponsesRequest
from astraea_local.api.responses.store import ResponseStore
from astraea_local.api.service import Service, until_disconnect
from astraea_local.api.streaming import respond
from astraea_local.api.tools import returned_tool_of_items
from astraea_local.engine.messages import Finished, Paused, Started

router = APIRouter()

_NOT_STORED: dict[int | str, dict[str, Any]] = {404: {"description": "No such response is stored"}}
_NAMES = {"max_completion_tokens": "max_output_tokens", "response_format": "text.format"}


@router.post("/v1/responses")
async def create_response(request: Request, body: ResponsesRequest) -> Response:
    """Answers a list of items."""
    service: Service = request.app.state.service
    store: ResponseStore = request.app.state.responses
    earlier = _earlier(store, body.previous_response_id, request.state.tenant)
    chat = chat_request(conversation(body, earlier), _NAMES)
    # Kinds of calls that no template can show are known by their items.
    tool = returned_tool_of_items([*earlier, *input_items(body)])
    opened = await open_conversation(service, request, chat, endpoint="responses", tool=tool)
    turn = _Turn(service, store, body, earlier, opened)
    if body.stream:
        return respond(service, opened.call, turn.stream())
    try:
        response = await until_disconnect(request, turn.whole())
    finally:
        opened.close()
    if response is None:
        return Response(status_code=499)
    return ascii_json(response, opened.call.headers)


@router.post("/v1/responses/input_tokens")
async def count_input_tokens(request: Request, body: ResponsesPrompt) -> dict[str, Any]:
    """How many tokens a response's input has."""
    service: Service = request.app.state.service
    earlier = _earlier(request.app.state.responses, body.previous_response_id, request.state.tenant)
    chat = chat_request(conversation(body, earlier), _NAMES)
    plan = await asyncio.to_thread(service.text.chat_plan, chat)
    return {"object": "response.input_tokens", "input_tokens": len(plan.prompt)}


@router.get("/v1/responses/{response_id}", responses=_NOT_STORED)
async def get_response(request: Request, response_id: str) -> Response:
    """A stored response."""
    stored = request.app.state.responses.get(response_id, request.state.tenant)
    if stored is None:
        raise _unknown(response_id, 404)
    return ascii_json(stored.response)


@router.delete("/v1/responses/{response_id}", responses=_NOT_STORED)
async def delete_response(request: Request, response_id: str) -> dict[str, Any]:
    """Forgets a stored response."""
    if not request.app.state.responses.remove(response_id, request.state.tenant):
        raise _unknown(response_id, 404)
    return {"id": response_id, "object": "response", "deleted": True}


class _Turn:
    """One response from its request to its place in the store."""

    def __init__(
        self,
        service: Service,
        store: ResponseStore,
        body: ResponsesRequest,
        earlier: Sequence[Item],
        opened: Conversation,
    ) -> None:
        self._service = service
        self._store = store
        self._body = body
        self._earlier = earlier
        self._opened = opened
        about = _about(body, service.text.name)
        self._out = Outbound(about, seal=wants_sealed(body), clock=time.time)

    async def whole(self) -> dict[str, Any]:
        """The response once it is complete. Raises `ApiError`."""
        async for _ in self._events():
            pass
        return self._out.response

    async def stream(self) -> AsyncIterator[ServerSentEvent]:
        """Its events; a failure is the last one."""
        try:
            async for event in self._events():
                yield _sse(event) if isinstance(event, dict) else ServerSentEvent(comment=event)
        except ApiError as error:
            for event in self._out.fail(error):
                yield _sse(event)

    async def _events(self) -> AsyncIterator[Event | str]:
        """Events, and comments on what happens meanwhile."""
        out = self._out
        for told in out.begin():
            yield told
        async for _, event in self._opened.events():
            match event:
                case Paused(reason=reason):
                    yield f"paused: {reason}"
                case Finished(reason=reason):
                    for told in out.close(reason):
                        yield told
                    for told in out.end(reason, self._usage(), {"astraea": self._opened.call.timings}):
                        self._keep()
                        yield told
                case Started() | Logprobs():
                    pass
                case _:
                    for told in out.part(event):
                        yield told

    def _keep(self) -> None:
        if self._body.store:
            tenant = self._opened.call.tenant
            self._store.add(self._out.response, self._earlier, input_items(self._body), tenant)
            # Whoever goes on from this response belongs to its job.
            self._service.book.remember(self._opened.call.identity, self._out.response["id"])

    def _usage(self) -> dict[str, Any]:
        counts = self._opened.call.usage
        thought = reasoning_tokens(self._service, self._opened.call, self._out.reasoning)
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": counts["total_tokens"],
        }


def _about(body: ResponsesRequest, model: str) -> dict[str, Any]:
    """What a response repeats of its request."""
    effort, form = body.reasoning and body.reasoning.effort, body.text.format
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "model": model,
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": effort, "summary": None},
        "store": body.store,
        "temperature": body.temperature,
        "text": {"format": {"type": form.type} | form.model_dump(by_alias=True, exclude_unset=True)},
        "tool_choice": body.tool_choice,
        "tools": body.tools,
        "top_p": body.top_p,
        "truncation": "disabled",
    }


def _earlier(store: ResponseStore, response_id: str | None, tenant: str) -> Sequence[Item]:
    if response_id is None:
        return ()
    stored = store.get(response_id, tenant)
    if stored is None:
        raise _unknown(response_id, 400)
    return stored.items


def _unknown(response_id: str, status: int) -> ApiError:
    text = f"no response {response_id!r} is stored: it was not stored, is too old, or gave way to newer ones"
    if status == 404:
        return ApiError(404, text, code="response_not_found")
    return ApiError(
        400,
        f"previous_response_id: {text}; send the whole conversation as input",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def _sse(event: Event) -> ServerSentEvent:
    return ServerSentEvent(event=event["type"], data=json.dumps(event))
