"""`POST /v1/chat/completions`."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from astraea_local.api.conversation import AnswerEvent, ChatAnswer, Logprobs, open_conversation
from astraea_local.api.parts import Reasoning, Text, ToolArguments, ToolCallBegun
from astraea_local.api.schemas import ChatRequest
from astraea_local.api.service import Call, Service, until_disconnect
from astraea_local.api.streaming import stream
from astraea_local.api.text_model import TextModel
from astraea_local.engine.messages import ChosenToken, Finished, Paused, Started

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answers a conversation."""
    service: Service = request.app.state.service
    top = (body.top_logprobs or 0) if body.logprobs else None
    conversation = await open_conversation(service, request, body, endpoint="chat", top=top)
    call = conversation.call
    form = _Form(service.text, body.logprobs)
    if body.stream:
        usage = (lambda: form.usage_chunk(call)) if body.include_usage else None
        return stream(service, call, conversation.events(), form.chunks, usage)
    try:
        answers = await until_disconnect(request, conversation.answers())
    finally:
        conversation.close()
    if answers is None:
        return Response(status_code=499)
    choices = [
        {
            "index": index,
            "message": _message(answer),
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


def _message(answer: ChatAnswer) -> dict[str, Any]:
    # Null where the model only called tools: some clients would show an empty message.
    content = answer.text or (None if answer.calls else "")
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in answer.calls
        ]
    return message


class _Form:
    """The objects of one answer share an id, a time and a model name."""

    def __init__(self, text: TextModel, with_logprobs: bool) -> None:
        self._text = text
        self._with_logprobs = with_logprobs
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._greeted: set[int] = set()
        self._logprobs: dict[int, tuple[ChosenToken, ...]] = {}

    def base(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._text.name}

    def chunks(self, index: int, event: AnswerEvent) -> Iterator[dict[str, Any]]:
        if isinstance(event, Started | Paused):
            return
        if index not in self._greeted:
            self._greeted.add(index)
            yield self._chunk(index, {"role": "assistant", "content": ""})
        match event:
            case Logprobs(tokens):
                self._logprobs[index] = self._logprobs.get(index, ()) + tokens
            case Text(text):
                yield self._chunk(index, {"content": text})
            case Reasoning(text):
                yield self._chunk(index, {"reasoning_content": text})
            case ToolCallBegun(number, id_, name):
                function = {"name": name, "arguments": ""}
                begun = {"index": number, "id": id_, "type": "function", "function": function}
                yield self._chunk(index, {"tool_calls": [begun]})
            case ToolArguments(number, fragment):
                more = {"index": number, "function": {"arguments": fragment}}
                yield self._chunk(index, {"tool_calls": [more]})
            case Finished(reason=reason):
                if self._logprobs.get(index):
                    yield self._chunk(index, {"content": ""})
                yield self._chunk(index, {}, reason=reason)

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

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        # Those of tokens without any text of their own wait for the next chunk.
        tokens = () if "role" in delta else self._logprobs.pop(index, ())
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self.logprobs(tokens) if tokens else None,
            "finish_reason": reason,
        }
        return self.base("chat.completion.chunk") | {"choices": [choice]}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self._text.piece(token)
        return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}
