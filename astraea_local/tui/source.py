"""Where frames come from: a running server, or a recording. `mock` has a third one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx

from astraea_local.frame import StateFrame
from astraea_local.tui.connection import reason, tls_fault
from astraea_local.tui.pace import INTERVAL_S, MOST_INTERVAL_S
from astraea_local.tui.record import RecordError, Recording, parse

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 8.0
_LOADING_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Link:
    """How a source stands, whenever that changes."""

    state: Literal["connecting", "loading", "live", "lost", "ended"]
    text: str = ""
    """For a user; empty while live."""


Update = StateFrame | Link


class Source(Protocol):
    """Gives frames, and says when it cannot."""

    name: str
    """What is being watched: a URL, a file, `mock`."""
    interval: float
    """Seconds between two frames at least; may be changed at any time."""
    transport: "Transport | None"
    """Of a recording: play, pause, step, speed."""

    def updates(self) -> AsyncIterator[Update]:
        """Endless, but for `Link("ended")` of which nothing follows. Raises nothing."""
        ...


class HttpSource:
    """A server's event stream; reconnects by itself, at growing distances."""

    transport: "Transport | None" = None

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient,
        *,
        interval: float = INTERVAL_S,
        on_raw: Callable[[bytes], None] | None = None,
        starting: bool = False,
    ) -> None:
        """`on_raw` gets every frame's JSON, also those that come faster than they are shown; a `RecordError`
        of its own is told and ends that.

        `starting`: the server was started just now, so that no answer is no news at first.
        """
        self.name = url
        self.interval = interval
        self._client = client
        self._on_raw = on_raw
        self._unrecorded = ""
        self._newest: bytes | None = None
        self._starting = starting
        self._link = Link("connecting", "the server is starting" if starting else f"connecting to {url}")
        self._link_changed = asyncio.Event()
        self._news = asyncio.Event()
        self._news.set()

    async def updates(self) -> AsyncIterator[Update]:
        """Frames not faster than `interval`, always the newest; what came in between is skipped."""
        reader = asyncio.create_task(self._read())
        told: Link | None = None
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                self._link_changed.clear()
                raw, self._newest = self._newest, None
                update = self._link if raw is None else _frame_or_link(raw, self.name)
                link = update if isinstance(update, Link) else self._link
                if told != link:
                    told = link
                    yield link
                if isinstance(update, StateFrame):
                    yield update
                if raw is not None:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._link_changed.wait(), self.interval)
        finally:
            reader.cancel()
            # Not for ever: a connection may take its time to close, and a screen must not.
            await asyncio.wait({reader}, timeout=1.0)

    async def _read(self) -> None:
        delay = _FIRST_RETRY_S
        while True:
            try:
                await self._until_loaded()
                async for data in self._stream():
                    self._record(data)
                    self._tell(Link("live", self._unrecorded))
                    delay = _FIRST_RETRY_S
                    self._newest = data
                    self._news.set()
                why = "the server ended the connection"
            except httpx.ConnectError as error:
                if self._starting and not tls_fault(error):
                    await asyncio.sleep(_LOADING_POLL_S)
                    continue
                why = reason(error)
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
                why = reason(error)
            self._tell(Link("lost", f"{why}; trying again"))
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_RETRY_S)

    def _record(self, data: bytes) -> None:
        if self._on_raw is None:
            return
        try:
            self._on_raw(data)
        except RecordError as error:
            # A full disk ends the recording, not the watching.
            self._on_raw = None
            self._unrecorded = str(error)

    async def _until_loaded(self) -> None:
        """Waits while the model loads: the event stream is silent until then."""
        while True:
            health = await self._client.get("/health")
            self._starting = False
            try:
                body = health.json()
            except ValueError:
                return
            loading = isinstance(body, dict) and body.get("status") == "loading"
            if health.status_code != httpx.codes.SERVICE_UNAVAILABLE or not loading:
                return
            progress = body.get("progress")
            share = f", {progress:.0%}" if isinstance(progress, int | float) else ""
            self._tell(Link("loading", f"loading the model{share}"))
            await asyncio.sleep(_LOADING_POLL_S)

    async def _stream(self) -> AsyncIterator[bytes]:
        async with self._client.stream("GET", "/astraea/v1/events") as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
            response.raise_for_status()
            async for line in _lines(response.aiter_bytes()):
                if line.startswith(b"data:"):
                    yield line[5:].strip()

    def _tell(self, link: Link) -> None:
        if link != self._link:
            self._link = link
            self._news.set()
            self._link_changed.set()


async def newest(client: httpx.AsyncClient) -> StateFrame:
    """One frame. Raises `httpx.HTTPError`, and `RecordError` when it is of another version."""
    answer = await client.get("/astraea/v1/state")
    answer.raise_for_status()
    return parse(answer.content, str(client.base_url).rstrip("/"))


class Transport:
    """Play, pause, step and speed of a recording."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.position = 0
        """Frame that is shown, or is shown next."""
        self.playing = True
        self.speed = 1.0
        self.moved = asyncio.Event()
        """Set when something else than time changed what is shown."""

    def toggle(self) -> None:
        """Pauses or plays on; at the end it begins again."""
        if not self.playing and self.position >= self.length - 1:
            self.position = 0
        self.playing = not self.playing
        self.moved.set()

    def step(self, frames: int) -> None:
        """Goes that many frames on (or back) and stays there."""
        self.playing = False
        self.position = max(0, min(self.length - 1, self.position + frames))
        self.moved.set()

    def faster(self, direction: int) -> None:
        """The next or the previous of `SPEEDS`."""
        index = SPEEDS.index(self.speed) + direction
        self.speed = SPEEDS[max(0, min(len(SPEEDS) - 1, index))]
        self.moved.set()


class ReplaySource:
    """A recording, in its own time."""

    interval = INTERVAL_S

    def __init__(self, recording: Recording) -> None:
        self.name = str(recording.path)
        self.transport: Transport | None = Transport(len(recording))
        self._recording = recording

    async def updates(self) -> AsyncIterator[Update]:
        """Each frame, or the one that was stepped to; a broken line is told and skipped."""
        transport = self.transport
        assert transport is not None
        shown = -1
        while True:
            transport.moved.clear()
            yield self._link(transport)
            if transport.position != shown:
                shown = transport.position
                yield self._at(shown)
            last = shown >= transport.length - 1
            if not transport.playing or last:
                if last:
                    transport.playing = False
                    yield self._link(transport)
                await transport.moved.wait()
                continue
            pause = self._gap(shown) / transport.speed
            try:
                await asyncio.wait_for(transport.moved.wait(), pause)
            except TimeoutError:
                transport.position = shown + 1

    def _at(self, index: int) -> Update:
        try:
            return self._recording.frame(index)
        except RecordError as error:
            return Link("lost", str(error))

    def _gap(self, index: int) -> float:
        here, there = self._at(index), self._at(index + 1)
        if isinstance(here, Link) or isinstance(there, Link):
            return INTERVAL_S
        return min(MOST_INTERVAL_S, max(0.0, there.at - here.at))

    def _link(self, transport: Transport) -> Link:
        mark = "▶" if transport.playing else "‖"
        where = f"{transport.position + 1}/{transport.length}"
        return Link("live", f"{mark} recording {where} ×{transport.speed:g}")


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines that end with a newline; those of httpx also end at characters that names may have in them."""
    begun: list[bytes] = []
    async for piece in pieces:
        first, *others = piece.split(b"\n")
        begun.append(first)
        for other in others:
            yield b"".join(begun)
            begun = [other]


def _frame_or_link(raw: bytes, name: str) -> Update:
    try:
        return parse(raw, name)
    except RecordError as error:
        return Link("lost", str(error))
