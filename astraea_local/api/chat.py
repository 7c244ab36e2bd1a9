"""`POST /v1/chat/completions`."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from astraea_local.api.schemas import ChatRequest
from astraea_local.api.service import Call, Service, until_disconnect
from astraea_local.api.streaming import stream
from astraea_local.api.text_model import TextModel
from astraea_local.engine.messages import ChosenToken, Delta, Finished
from astraea_local.engine.supervisor import SegmentEvent

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answers a conversation."""
    service: Service = request.app.state.service
    service.check_ready(body.n)
    prompt = await service.chat_prompt(body)
    top = (body.top_logprobs or 0) if body.logprobs else None
    call = await service.open(request, body, prompt, endpoint="chat", top=top)
    form = _Form(service.text, body.logprobs)
    if body.stream:
        usage = (lambda: form.usage_chunk(call)) if body.include_usage else None
        return stream(service, call, form.chunks, usage)
    try:
        answers = await until_disconnect(request, service.answers(call))
    finally:
        service.close(call)
    if answers is None:
        return Response(status_code=499)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": form.logprobs(answer.logprobs),
            "finish_reason": answer.finished.reason,
        }
        for index, answer in enumerate(answers)
    ]
    whole = form.base("chat.completion") | {
        "choices": choices,
        "usage": call.usage,
        "astraea": call.timings,
    }
    return JSONResponse(whole, headers=call.headers)


class _Form:
    """The objects of one answer share an id, a time and a model name."""

    def __init__(self, text: TextModel, with_logprobs: bool) -> None:
        self._text = text
        self._with_logprobs = with_logprobs
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._greeted: set[int] = set()

    def base(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._text.name}

    def chunks(self, index: int, event: SegmentEvent) -> Iterator[dict[str, Any]]:
        if not isinstance(event, Delta | Finished):
            return
        if index not in self._greeted:
            self._greeted.add(index)
            yield self._chunk(index, {"role": "assistant", "content": ""})
        if event.text or event.logprobs:
            yield self._chunk(index, {"content": event.text}, event.logprobs)
        if isinstance(event, Finished):
            yield self._chunk(index, {}, reason=event.reason)

    def usage_chunk(self, call: Call) -> dict[str, Any]:
        return self.base("chat.completion.chunk") | {
            "choices": [],
            "usage": call.usage,
            "astraea": call.timings,
        }

    def logprobs(self, tokens: tuple[ChosenToken, ...]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {
            "content": [
                self._token(t.token, t.logprob)
                | {"top_logprobs": [self._token(a.token, a.logprob) for a in t.top]}
                for t in tokens
            ],
            "refusal": None,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: tuple[ChosenToken, ...] = (),
        reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self.logprobs(logprobs) if logprobs else None,
            "finish_reason": reason,
        }
        return self.base("chat.completion.chunk") | {"choices": [choice]}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self._text.vocab.piece(token, special=True)
        return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}
