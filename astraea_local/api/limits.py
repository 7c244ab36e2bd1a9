"""Refuses what no handler should see: bodies that are too large, and names of other computers."""

import ipaddress
import re

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


class LocalHosts:
    """ASGI middleware: 400 for requests to any name but this computer's own.

    A web page that resolves its own name to 127.0.0.1 sends that name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not _is_local(re.sub(r":\d*$", "", host)):
                text = f"Host {host!r} is not this computer: connect to localhost or 127.0.0.1"
                await ApiError(400, text, code="foreign_host").response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_local(name: str) -> bool:
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name.lower() in ("localhost", "testserver")
