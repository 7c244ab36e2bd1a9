"""Errors in the shapes that the SDKs of OpenAI and Anthropic read."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from astraea_local.engine.messages import Failed, Reply

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
_ANTHROPIC_TYPES = _TYPES | {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}
# With these pydantic names the alternatives of a union.
_ALTERNATIVES = ("list[", "dict[", "literal[", "function-", "tagged-")
# Everything under it speaks Anthropic's dialect.
_ANTHROPIC_PATH = "/v1/messages"


class ApiError(HTTPException):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        sent = dict(headers or {})
        if retry_after_s is not None:
            sent["Retry-After"] = str(max(1, round(retry_after_s)))
        super().__init__(status, message, sent)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {...}}`, also what a broken stream ends with."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, default),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The same for Anthropic's SDK: `{"type": "error", "error": {...}}`."""
        default = "invalid_request_error" if self.status < 500 else "api_error"
        kind = _ANTHROPIC_TYPES.get(self.status, default)
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, path: str = "") -> JSONResponse:
        """The whole answer, in the dialect of the path that was asked for."""
        body = self.anthropic_body if path.startswith(_ANTHROPIC_PATH) else self.body
        return JSONResponse(body, status_code=self.status, headers=self.headers)


def from_failure(failed: Failed) -> ApiError:
    """The answer to a segment that the engine could not complete."""
    if failed.retryable:
        return ApiError(503, failed.message, code=failed.code, retry_after_s=1)
    return ApiError(400, failed.message, code=failed.code)


def from_reply(reply: Reply) -> ApiError:
    """The answer to a question to which the engine said anything but `done`."""
    if reply.outcome == "unknown":
        return ApiError(404, reply.text, code="unknown_job", param="job")
    if reply.outcome == "unavailable":
        return ApiError(503, reply.text, code="engine_unavailable", retry_after_s=2)
    return ApiError(409, reply.text, code="not_possible_now")


def install(app: FastAPI) -> None:
    """Makes every error of the app, FastAPI's own included, answer in that shape."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _from_validation(error).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        where = f"{request.method} {request.url.path}"
        if error.status_code == 404:
            message = f"{where} does not exist on this server"
        if error.status_code == 405:
            message = f"{where} is not possible: use {(error.headers or {}).get('Allow', 'another method')}"
        response = ApiError(error.status_code, message).response(request.url.path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def _bug(request: Request, _error: Exception) -> JSONResponse:
        return ApiError(500, "the server failed on this request; its log says why").response(request.url.path)


def _from_validation(error: RequestValidationError) -> ApiError:
    # Of the alternatives of a union, the one that fits best fails deepest.
    fault = max(error.errors(), key=lambda f: len(f["loc"]))
    path = [str(part) for part in fault["loc"] if part != "body"]
    param = ".".join(part for part in path if not _is_alternative(part))
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        message = f"the body is not valid JSON: {fault.get('ctx', {}).get('error', '')}"
        param = ""
    elif not path:
        message = "the body must be a JSON object, sent with Content-Type: application/json"
    return ApiError(
        400, f"{param}: {message}" if param else message, param=param or None, code="invalid_value"
    )


def _is_alternative(part: str) -> bool:
    """Whether it is the name of a union's alternative; a user knows only fields and positions."""
    # Models are written with a capital, which no field is.
    return part in ("str", "bool") or part[:1].isupper() or part.startswith(_ALTERNATIVES)
