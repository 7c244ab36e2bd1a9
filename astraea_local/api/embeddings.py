"""`POST /v1/embeddings`."""

import asyncio
import base64
import json
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from astraea_local.api.errors import ApiError, from_reply
from astraea_local.api.schemas import EmbeddingRequest
from astraea_local.api.service import Service, until_disconnect
from astraea_local.api.text_model import TextModel
from astraea_local.engine.binding import Tokens
from astraea_local.engine.messages import Ready, Reply

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
    """The vectors of texts, each of length 1, where the model's file says how they are made."""
    service: Service = request.app.state.service
    service.check_ready()
    ready = service.engine.ready
    assert ready is not None
    _check_served(ready, body)
    deadline = service.deadline()
    # As long as a body may be, which takes a tokenizer seconds.
    inputs = await asyncio.to_thread(_tokenized, service.text, body, ready.embedding_tokens)
    # Behind that wait, so that it still holds.
    service.check_ready()
    tenant: str = getattr(request.state, "tenant", "")
    service.tenants.take(tenant, 1)
    outcome = "cancelled"
    try:
        reply = await until_disconnect(request, service.in_time(service.engine.embed(inputs), deadline))
        if reply is not None:
            outcome = "finished" if reply.outcome == "done" else "failed"
    finally:
        service.tenants.release(tenant, 1)
        service.metrics.request("embeddings", outcome)
    if reply is None:
        return Response(status_code=499)
    if reply.outcome != "done":
        raise from_reply(reply)
    told = await asyncio.to_thread(_answer, service.text.name, body, inputs, reply)
    return Response(told, media_type="application/json")


def _check_served(ready: Ready, body: EmbeddingRequest) -> None:
    """Raises `ApiError` when the model gives no embeddings, or none of that size."""
    size = ready.embedding_size
    if not size:
        text = (
            "embeddings are not served by this model: its file names no pooling. Serve an embedding model of "
            "the decoder kind, such as a GGUF of Qwen3-Embedding"
        )
        # Not 501, which the SDKs would try again.
        raise ApiError(400, text, code="embeddings_not_served", param="model")
    if body.dimensions not in (None, size):
        text = f"dimensions: this model's embeddings have {size} and cannot be shortened: leave it out"
        raise ApiError(400, text, code="invalid_value", param="dimensions")


def _tokenized(text: TextModel, body: EmbeddingRequest, limit: int) -> tuple[Tokens, ...]:
    """The tokens of each input. Raises `ApiError` naming the first that has none, or more than `limit`."""
    inputs = []
    for name, given in body.inputs.items():
        tokens = text.text_prompt(given, name)
        if len(tokens) == 0:
            raise ApiError(400, f"{name}: must not be empty", code="invalid_value", param=name)
        if len(tokens) > limit:
            raise ApiError(
                400,
                f"{name}: {len(tokens)} tokens > {limit} maximum of an embedding's input: split it, or serve "
                "with a larger context.size where the model allows more",
                code="context_length_exceeded",
                param=name,
            )
        inputs.append(tokens)
    return tuple(inputs)


def _answer(model: str, body: EmbeddingRequest, inputs: tuple[Tokens, ...], reply: Reply) -> str:
    """The answer as JSON; the numbers are exactly those of the engine, in either format."""
    vectors = np.frombuffer(reply.data, np.float32).reshape(len(inputs), -1)
    if body.encoding_format == "base64":
        told: list[Any] = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        told = vectors.tolist()
    tokens = sum(map(len, inputs))
    data = [{"object": "embedding", "index": i, "embedding": each} for i, each in enumerate(told)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps({"object": "list", "data": data, "model": model, "usage": usage})
