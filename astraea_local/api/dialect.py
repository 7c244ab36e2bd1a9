"""What the dialects beside chat completions share: becoming a `ChatRequest`, counting thoughts, answering."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from astraea_local.api.schemas import ChatRequest
from astraea_local.api.service import Call, Service

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def chat_request(fields: Mapping[str, Any], names: Mapping[str, str] | None = None) -> ChatRequest:
    """The conversation request; `names` maps its fields to those the client knows.

    Raises `RequestValidationError`, which tells the client's names.
    """
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        for fault in faults:
            # The other dialects describe a tool's function without an object around it.
            path = [part for part in fault["loc"] if part != "function"]
            fault["loc"] = tuple((names or {}).get(str(part), part) for part in path)
        raise RequestValidationError(faults) from error


def effort_fields(effort: str | None) -> dict[str, Any]:
    """How much the model is asked to think; levels that nobody here knows are left to the template."""
    return {"reasoning_effort": effort} if effort in _EFFORTS else {}


def ascii_json(body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """An answer in which there may be half of a surrogate pair, for which UTF-8 has no bytes.

    A response repeats its request, and the object of a call's arguments what the model wrote in it.
    """
    return Response(json.dumps(body), media_type="application/json", headers=headers)


def reasoning_tokens(service: Service, call: Call, reasoning: str) -> int:
    """Output tokens that went into reasoning, counted on its text."""
    if not reasoning:
        return 0
    counted = len(service.text.vocab.tokenize(reasoning, add_special=False, parse_special=False))
    return min(counted, int(call.usage["completion_tokens"]))
