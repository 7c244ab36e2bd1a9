"""`POST /v1/completions`."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from astraea_local.api.errors import ApiError
from astraea_local.api.schemas import CompletionRequest
from astraea_local.api.service import Call, Service, until_disconnect
from astraea_local.api.streaming import stream
from astraea_local.api.text_model import TextModel
from astraea_local.engine.messages import ChosenToken, Delta, Finished
from astraea_local.engine.supervisor import SegmentEvent

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continues a text."""
    service: Service = request.app.state.service
    service.check_ready(body.n)
    prompt = body.prompt
    if isinstance(prompt, list) and isinstance(prompt[0], str):
        if len(prompt) > 1:
            raise ApiError(400, "prompt: send one text for each request", param="prompt")
        prompt = prompt[0]
    # As long as a body may be, which takes a tokenizer seconds.
    tokens = await asyncio.to_thread(service.text.text_prompt, prompt)
    echo = await asyncio.to_thread(service.text.decode, tokens) if body.echo else ""
    guidance = await asyncio.to_thread(service.text.guidance, body)
    call = await service.open(
        request, body, tokens, endpoint="completions", top=body.logprobs, guidance=guidance
    )
    form = _Form(service.text, body.logprobs is not None, echo)
    if body.stream:
        usage = (lambda: form.usage_chunk(call)) if body.include_usage else None
        return stream(service, call, service.events(call), form.chunks, usage)
    try:
        answers = await until_disconnect(request, service.answers(call))
    finally:
        service.close(call)
    if answers is None:
        return Response(status_code=499)
    choices = [
        form.choice(index, form.echo + answer.text, answer.logprobs, answer.finished.reason)
        for index, answer in enumerate(answers)
    ]
    return JSONResponse(
        form.base() | {"choices": choices, "usage": call.usage, "astraea": call.timings}, headers=call.headers
    )


class _Form:
    """The objects of one answer share an id, a time and a model name."""

    def __init__(self, text: TextModel, with_logprobs: bool, echo: str) -> None:
        """`echo` is the prompt's text, where an answer begins with that."""
        self._text = text
        self._with_logprobs = with_logprobs
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._offsets: dict[int, int] = {}
        self.echo = echo

    def base(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._text.name,
        }

    def chunks(self, index: int, event: SegmentEvent) -> Iterator[dict[str, Any]]:
        if not isinstance(event, Delta | Finished):
            return
        text = event.text
        if self.echo and index not in self._offsets:
            text = self.echo + text
        self._offsets.setdefault(index, len(self.echo))
        reason = event.reason if isinstance(event, Finished) else None
        if text or event.logprobs or reason:
            yield self.base() | {"choices": [self.choice(index, text, event.logprobs, reason)]}

    def usage_chunk(self, call: Call) -> dict[str, Any]:
        return self.base() | {"choices": [], "usage": call.usage, "astraea": call.timings}

    def choice(
        self, index: int, text: str, logprobs: tuple[ChosenToken, ...], reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, logprobs),
            "finish_reason": reason,
        }

    def _logprobs(self, index: int, tokens: tuple[ChosenToken, ...]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        words = [self._word(t.token) for t in tokens]
        offset = self._offsets.get(index, len(self.echo))
        offsets = []
        for word in words:
            offsets.append(offset)
            offset += len(word)
        self._offsets[index] = offset
        return {
            "tokens": words,
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{self._word(a.token): a.logprob for a in t.top} for t in tokens],
            "text_offset": offsets,
        }

    def _word(self, token: int) -> str:
        return self._text.piece(token).decode("utf-8", "replace")
