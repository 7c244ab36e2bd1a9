"""Connections that cost something and bring nothing are cut: half a request, an answer nobody reads."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from astraea_local.profile import ServerSettings

_FULL_BODY = (
    b'{"error": {"message": "too many connections: try again later", "type": "server_error", "param": null, '
    b'"code": "connections_full"}}'
)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)


class GuardedProtocol(H11Protocol):
    """uvicorn's connection with the time limits that it lacks."""

    settings: ServerSettings = ServerSettings()
    _request_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request; one connection too many is told so and closed."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            transport.write(_FULL)
            transport.close()
            return
        self._watch_request()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, which must become whole in time however slowly they trickle."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch_request()

    def pause_writing(self) -> None:
        """The client does not read; its answer is cut off when that lasts."""
        super().pause_writing()
        self._reader_timer = self.loop.call_later(self.settings.slow_reader_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        super().connection_lost(exc)
        for timer in (self._request_timer, self._reader_timer):
            if timer is not None:
                timer.cancel()

    def _watch_request(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
        elif not answering and self._request_timer is None and not self.transport.is_closing():
            self._request_timer = self.loop.call_later(self.settings.read_timeout_s, self._no_request)

    def _no_request(self) -> None:
        self._request_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
