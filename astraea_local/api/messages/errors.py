"""Errors in the shape that Anthropic's SDKs read."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from astraea_local.api.errors import ApiError, from_validation

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def body_of(error: ApiError) -> dict[str, Any]:
    """`{"type": "error", "error": {...}}`, also what a broken stream ends with."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


class MessagesRoute(APIRoute):
    """A route whose errors, FastAPI's own included, have that shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, which answers errors itself."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return _response(from_validation(error))
            except ApiError as error:
                return _response(error)

        return answer


def _response(error: ApiError) -> JSONResponse:
    response = JSONResponse(body_of(error), status_code=error.status)
    # Which headers an error has does not depend on the dialect.
    if (after := error.response().headers.get("retry-after")) is not None:
        response.headers["Retry-After"] = after
    return response
