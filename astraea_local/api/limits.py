"""Refuses bodies that are too large before they are read into memory."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from astraea_local.api.errors import ApiError


class BodyLimit:
    """ASGI middleware: 413 for a request body of more than `limit` bytes, declared or sent."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            await self._error().response()(scope, receive, send)
            return
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._error()
            return message

        await self._app(scope, counting, send)

    def _error(self) -> ApiError:
        text = f"the body is larger than server.max_body_mib allows ({self._limit >> 20} MiB)"
        return ApiError(413, text, code="body_too_large")
