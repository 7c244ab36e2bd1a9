"""The OpenAPI document: what FastAPI knows of the requests, completed by the answers and errors."""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from astraea_local.api.messages.schemas import MessageObject, TokenCount
from astraea_local.api.responses.schemas import DeletedResponse, InputTokens, ResponseObject
from astraea_local.frame import StateFrame

_REF = "#/components/schemas/{model}"
# The schema is that of one event.
_EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
_STREAM = {"text/event-stream": {"schema": _EVENT}}


class Fault(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """What every error looks like."""

    error: Fault


class AnthropicFault(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    """The same in the dialect of `/v1/messages`."""

    type: Literal["error"]
    error: AnthropicFault


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Timings(BaseModel):
    job: str
    identified_by: str = ""
    queued_ms: float = 0
    prefill_ms: float = 0
    decode_ms: float = 0


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] = []


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    astraea: Timings


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    astraea: Timings


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelEntry(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    meta: dict[str, Any] = {}


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelEntry]


class Health(BaseModel):
    status: Literal["ok", "loading", "restarting", "failed", "stopping", "paused"]
    progress: float | None = None
    error: str | None = None


class Piece(BaseModel):
    id: int
    piece: str


class TokenList(BaseModel):
    tokens: list[int] | list[Piece]


class DecodedText(BaseModel):
    content: str


class KnownPolicy(BaseModel):
    name: str
    summary: str


class PolicyState(BaseModel):
    policy: str
    policies: list[KnownPolicy] = []


# By method and path: the answer, and whether it may also come as a stream. None = a stream only.
_ANSWERS: dict[tuple[str, str], tuple[type[BaseModel] | None, bool]] = {
    ("post", "/v1/chat/completions"): (ChatCompletion, True),
    ("post", "/v1/completions"): (TextCompletion, True),
    ("post", "/v1/responses"): (ResponseObject, True),
    ("post", "/v1/responses/input_tokens"): (InputTokens, False),
    ("get", "/v1/responses/{response_id}"): (ResponseObject, False),
    ("delete", "/v1/responses/{response_id}"): (DeletedResponse, False),
    ("post", "/v1/messages"): (MessageObject, True),
    ("post", "/v1/messages/count_tokens"): (TokenCount, False),
    ("post", "/v1/embeddings"): (EmbeddingList, False),
    ("get", "/v1/models"): (ModelList, False),
    ("get", "/health"): (Health, False),
    ("post", "/tokenize"): (TokenList, False),
    ("post", "/detokenize"): (DecodedText, False),
    ("get", "/astraea/v1/state"): (StateFrame, False),
    ("get", "/astraea/v1/events"): (None, True),
    ("get", "/astraea/v1/policy"): (PolicyState, False),
    ("post", "/astraea/v1/policy"): (PolicyState, False),
}
_GENERATES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
# They wait for their turn at the model.
_COMPUTES = (*_GENERATES, "/v1/embeddings")
# What a client may say about the job behind a request; many send the like in headers of their own.
_OF_THE_JOB = {
    "X-Astraea-Job": ({"type": "string"}, "The job's name"),
    "X-Astraea-Agent": ({"type": "string"}, "The agent's name within the job"),
    "X-Astraea-Parent": ({"type": "string"}, "The job that this one belongs to"),
    "X-Astraea-Priority": ({"type": "integer", "minimum": -9, "maximum": 9}, "Queues that it is moved up by"),
    "X-Astraea-Final": ({"type": "boolean"}, "No further request of this job will come"),
}
_JOB_NAME = {"X-Astraea-Job": {"schema": {"type": "string"}, "description": "Its name, percent-encoded"}}
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds"}}
# Under these the engine is asked to do something, and may not be able to.
_ACTS = tuple(f"/astraea/v1/{name}" for name in ("context", "pause", "resume", "jobs/", "scheduler/"))
_ALWAYS = {
    "400": "A field, the Host header or the body is wrong; the message names it",
    "403": "The page of another site asks",
    "431": "Too many headers",
    "500": "A fault of the server; its log says more",
    "503": "Loading, restarting, stopping or out of room; Retry-After says when to try again",
}
_WITH_BODY = {"408": "The body did not arrive in time", "413": "The body is too large"}
_OF_COMPUTING = {
    "429": "The queue is full, or this API key's share of it; Retry-After says when to try again",
    "504": "The answer took longer than the server allows",
}


def install(app: FastAPI, *, keys_needed: bool) -> None:
    """Makes `/openapi.json` complete; `keys_needed` tells whether the server has API keys."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = _completed(made, keys_needed)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _completed(document: dict[str, Any], keys_needed: bool) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    models: list[type[BaseModel]] = [Error, AnthropicError]
    models += [model for model, _streams in _ANSWERS.values() if model is not None]
    for model in models:
        schema = model.model_json_schema(ref_template=_REF, mode="serialization")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if keys_needed:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document["security"] = [{"bearer": []}, {"header": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, method, path, keys_needed)
    return document


def _complete(operation: dict[str, Any], method: str, path: str, keys_needed: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    faults = dict(_ALWAYS)
    if method not in ("get", "head"):
        faults |= _WITH_BODY
    if method == "post" and path in _COMPUTES:
        faults |= _OF_COMPUTING
    if method == "post" and path in _GENERATES:
        responses["200"]["headers"] = _JOB_NAME
        operation["parameters"] = [
            {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
            for name, (schema, text) in _OF_THE_JOB.items()
        ]
    if method == "post" and path.startswith(_ACTS):
        faults["409"] = "Not possible as things are; the message says why"
    if "{" in path:
        faults["404"] = "There is no such thing, or no longer"
    if path.startswith("/astraea/v1/debug/"):
        faults["404"] = "Switched off in the profile"
    if path == "/health":
        operation["security"] = []
    elif keys_needed:
        faults["401"] = "No API key, or a wrong one"
    error = "AnthropicError" if path.startswith("/v1/messages") else "Error"
    for status, text in faults.items():
        fault = responses.setdefault(status, {"description": text, "content": _json(error)})
        if "Retry-After" in text:
            fault["headers"] = _RETRY_AFTER
    if path == "/health":
        # Not an error's shape: a monitor reads the same fields whatever the state.
        alternatives = [{"$ref": _REF.format(model=name)} for name in ("Health", "Error")]
        responses["503"]["content"] = {"application/json": {"schema": {"anyOf": alternatives}}}
    if path == "/metrics":
        responses["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if (method, path) in _ANSWERS:
        model, streams = _ANSWERS[method, path]
        content = _json(model.__name__) if model is not None else {}
        responses["200"]["content"] = content | (_STREAM if streams else {})


def _json(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model)}}}
