"""How large things may be that clients send. What is too large is refused before anything is built of it."""

import asyncio
import json
import re
from typing import Any

from starlette.types import Message, Receive

from astraea_local.api.errors import ApiError

MAX_HEADERS = 100
MAX_DEPTH = 100
"""Arrays and objects in one another."""
MAX_VALUES = 1_000_000
"""Members of all arrays and objects together; each costs far more memory than its text."""
MAX_SCHEMA_BYTES = 256 << 10
MAX_SCHEMA_NODES = 20_000
MAX_SCHEMA_DEPTH = 64

# Possessive, so that a string without its end costs no time either.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
# Shorter bodies are looked through at once; a thread would cost more.
_INLINE = 64 << 10


class Bodies:
    """Reads request bodies: each within its limit and time, all together within a multiple of it."""

    def __init__(self, limit: int, timeout_s: float) -> None:
        """`limit` in bytes for one body; `timeout_s` is how long a client may take to send it."""
        self._limit = limit
        self._timeout_s = timeout_s
        self._most = max(4 * limit, 64 << 20)
        self._held = 0

    async def read(self, declared: str, receive: Receive) -> bytes | None:
        """A whole body, None when the client left; `release` it later. Raises `ApiError`."""
        if declared.isdecimal() and int(declared[:20]) > self._limit:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        self._held -= size
                        return None
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    self._held += len(chunk)
                    self._check(size)
                    chunks.append(chunk)
                    more = message.get("more_body", False)
            body = b"".join(chunks)
            if len(body) > _INLINE:
                await asyncio.to_thread(check_shape, body)
            else:
                check_shape(body)
        except TimeoutError:
            self._held -= size
            text = f"the body did not arrive within server.read_timeout_s ({self._timeout_s:g} s)"
            raise ApiError(408, text, code="body_timeout", headers={"Connection": "close"}) from None
        except BaseException:
            self._held -= size
            raise
        return body

    def release(self, body: bytes) -> None:
        """The request of a body is over."""
        self._held -= len(body)

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise self._too_large()
        if self._held > self._most:
            text = f"requests of {self._held >> 20} MiB are being worked on: try again later"
            raise ApiError(503, text, code="bodies_full", retry_after_s=5)

    def _too_large(self) -> ApiError:
        text = f"the body is larger than server.max_body_mib allows ({self._limit >> 20} MiB)"
        return ApiError(413, text, code="body_too_large")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives that body first, and then whatever comes."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


def check_shape(body: bytes) -> None:
    """Raises `ApiError` for JSON that nests too deeply or has too many members; other faults are left."""
    marks = _STRING.sub(b"", body)
    if sum(marks.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        text = f"the body has more than {MAX_VALUES:,} values"
        raise ApiError(413, text, code="body_too_complex")
    depth = 0
    for bracket in _BRACKET.findall(marks):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            text = f"the body nests arrays and objects more than {MAX_DEPTH} deep"
            raise ApiError(400, text, code="body_too_complex")


def check_schema(schema: Any, param: str) -> None:
    """Raises `ApiError` for a JSON schema that is larger than any that people write."""
    nodes, deepest = 0, 0
    open_: list[tuple[Any, int]] = [(schema, 1)]
    while open_ and nodes <= MAX_SCHEMA_NODES:
        value, depth = open_.pop()
        nodes += 1
        deepest = max(deepest, depth)
        if isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            open_.extend((item, depth + 1) for item in inner)
    for what, found, most in (
        ("values", nodes, MAX_SCHEMA_NODES),
        ("levels", deepest, MAX_SCHEMA_DEPTH),
        ("bytes", len(json.dumps(schema)) if nodes <= MAX_SCHEMA_NODES else 0, MAX_SCHEMA_BYTES),
    ):
        if found > most:
            text = f"{param}: the schema has more than {most:,} {what}"
            raise ApiError(400, text, param=param, code="invalid_json_schema")
