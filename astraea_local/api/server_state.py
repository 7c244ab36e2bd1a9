"""The server's own endpoints: health, models, metrics, tokens, and the StateFrame."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sse_starlette import EventSourceResponse, ServerSentEvent

from astraea_local.api.errors import ApiError
from astraea_local.api.listing import listing
from astraea_local.api.schemas import DetokenizeRequest, PolicyRequest, TokenizeRequest
from astraea_local.api.service import Service
from astraea_local.api.text_model import TextModel
from astraea_local.frame import StateFrame
from astraea_local.scheduler.policies import POLICIES

router = APIRouter()

_FRAME_WAIT_S = 1.0


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 when requests are taken; 503 while loading, restarting, or after a failure."""
    engine = _service(request).engine
    serves = engine.status in ("ready", "paused")
    body: dict[str, Any] = {"status": "ok" if serves else engine.status}
    if engine.status == "loading":
        body["progress"] = round(engine.progress, 3)
    if engine.failure:
        body["error"] = engine.failure
    return JSONResponse(body, status_code=200 if serves else 503)


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is hosted."""
    service = _service(request)
    return listing(service.text.name, int(request.app.state.started_at), service.engine.ready)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(_service(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """Token ids of a text."""
    # As long as a body may be, which must not hold up other requests.
    told = await asyncio.to_thread(_tokens, _service(request).text, body)
    return Response(told, media_type="application/json")


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest) -> dict[str, str]:
    """The text of token ids."""
    return {"content": await asyncio.to_thread(_content, _service(request).text, body.tokens)}


@router.get("/astraea/v1/state")
async def state(request: Request) -> StateFrame:
    """The newest StateFrame."""
    return _current(_service(request))


@router.get("/astraea/v1/events")
async def events(request: Request) -> EventSourceResponse:
    """StateFrames as they change, at most four a second; event name `frame`."""
    service = _service(request)

    async def frames() -> AsyncIterator[ServerSentEvent]:
        while service.engine.status != "stopping":
            if service.engine.frame is not None:
                yield ServerSentEvent(event="frame", data=_current(service).model_dump_json())
            await service.engine.next_frame(_FRAME_WAIT_S)

    return EventSourceResponse(frames(), sep="\n")


@router.get("/astraea/v1/policy")
async def policies(request: Request) -> dict[str, Any]:
    """The scheduling policy in force, and all there are."""
    known = [{"name": name, "summary": policy.summary} for name, policy in POLICIES.items()]
    return {"policy": _service(request).engine.policy, "policies": known}


@router.post("/astraea/v1/policy")
async def set_policy(request: Request, body: PolicyRequest) -> dict[str, str]:
    """Goes on with another policy; what runs goes on running, what waits is ordered anew."""
    engine = _service(request).engine
    engine.set_policy(body.policy)
    return {"policy": engine.policy}


def _tokens(text: TextModel, body: TokenizeRequest) -> str:
    """JSON of token ids, or of objects of an id and its text."""
    tokens: list[Any] = text.vocab.tokenize(
        body.content, add_special=body.add_special, parse_special=body.parse_special
    ).tolist()
    if body.with_pieces:
        tokens = [{"id": t, "piece": text.piece(t).decode("utf-8", "replace")} for t in tokens]
    return json.dumps({"tokens": tokens})


def _content(text: TextModel, tokens: list[int]) -> str:
    """The text of token ids. Raises `ApiError`."""
    text.check_tokens(tokens, "tokens")
    return text.decode(tokens)


def _current(service: Service) -> StateFrame:
    engine = service.engine
    if engine.frame is None:
        raise ApiError(
            503,
            f"no state yet: the model is loading ({engine.progress:.0%})",
            code="loading",
            retry_after_s=2,
        )
    age = max(0.0, time.time() - engine.frame.at)
    rows = [job.model_copy(update={"since_s": job.since_s + age}) for job in engine.frame.jobs]
    return engine.frame.model_copy(
        update={
            # The engine alone knows that it gave its memory back.
            "status": engine.frame.status if engine.status == "ready" else engine.status,
            "restarts": engine.restarts,
            "uptime_s": engine.frame.uptime_s + age,
            "jobs": rows,
        }
    )
