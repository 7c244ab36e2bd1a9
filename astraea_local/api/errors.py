"""Errors in the shape that OpenAI's SDKs read."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from astraea_local.engine.messages import Failed

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
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

    def response(self) -> JSONResponse:
        headers: Mapping[str, str] | None = None
        if self.retry_after_s is not None:
            headers = {"Retry-After": str(max(1, round(self.retry_after_s)))}
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def from_failure(failed: Failed) -> ApiError:
    """The answer to a segment that the engine could not complete."""
    if failed.retryable:
        return ApiError(503, failed.message, code=failed.code, retry_after_s=1)
    return ApiError(400, failed.message, code=failed.code)


def install(app: FastAPI) -> None:
    """Makes every error of the app, FastAPI's own included, answer in that shape."""

    @app.exception_handler(ApiError)
    async def _api_error(_request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _from_validation(error).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"{request.method} {request.url.path} does not exist on this server"
        return ApiError(error.status_code, message).response()


def _from_validation(error: RequestValidationError) -> ApiError:
    fault = error.errors()[0]
    path = [str(part) for part in fault["loc"] if part != "body"]
    # Unions add the name of the alternative that was tried; a user knows only fields and positions.
    param = ".".join(part for part in path if not part.startswith(("str", "list[", "function-", "tagged-")))
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        message = f"the body is not valid JSON: {fault.get('ctx', {}).get('error', '')}"
        param = ""
    return ApiError(
        400, f"{param}: {message}" if param else message, param=param or None, code="invalid_value"
    )
