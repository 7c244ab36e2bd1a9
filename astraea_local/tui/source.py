"""Where frames come from: a running server, or a recording. `mock` has a third one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx

from astraea_local.frame import StateFrame
from astraea_local.tui.record import RecordError, Recording, parse

INTERVAL_S = 0.25
"""The server sends at most four frames a second."""
LEAST_INTERVAL_S = 0.1
MOST_INTERVAL_S = 10.0
SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 8.0
_CONNECT_S = 3.0
_SILENCE_S = 8.0
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
        """`on_raw` gets every frame's JSON, also those that come faster than they are shown.

        `starting`: the server was started just now, so that no answer is no news at first.
        """
        self.name = url
        self.interval = interval
        self._client = client
        self._on_raw = on_raw
        self._newest: str | None = None
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
                if told != self._link:
                    told = self._link
                    yield told
                raw, self._newest = self._newest, None
                if raw is not None:
                    yield _frame_or_link(raw, self.name)
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
                    self._tell(Link("live"))
                    delay = _FIRST_RETRY_S
                    self._newest = data
                    self._news.set()
                    if self._on_raw is not None:
                        self._on_raw(data.encode())
                why = "the server ended the connection"
            except httpx.ConnectError as error:
                if self._starting:
                    await asyncio.sleep(_LOADING_POLL_S)
                    continue
                why = reason(error)
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
                why = reason(error)
            self._tell(Link("lost", f"{why}; trying again"))
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_RETRY_S)

    async def _until_loaded(self) -> None:
        """Waits while the model loads: the event stream is silent until then."""
        while True:
            health = await self._client.get("/health")
            self._starting = False
            try:
                body = health.json()
            except ValueError:
                return
            if health.status_code != httpx.codes.SERVICE_UNAVAILABLE or body.get("status") != "loading":
                return
            self._tell(Link("loading", f"loading the model, {body.get('progress', 0):.0%}"))
            await asyncio.sleep(_LOADING_POLL_S)

    async def _stream(self) -> AsyncIterator[str]:
        async with self._client.stream("GET", "/astraea/v1/events") as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    yield line[5:].strip()

    def _tell(self, link: Link) -> None:
        if link != self._link:
            self._link = link
            self._news.set()
            self._link_changed.set()


def open_client(url: str, api_key: str | None) -> httpx.AsyncClient:
    """A client for everything the UI asks; gives up on a server that is silent. Raises `httpx.InvalidURL`."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
    # trust_env: a proxy from the environment cannot reach this computer's own server.
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False)


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


def _frame_or_link(raw: str, name: str) -> Update:
    try:
        return parse(raw.encode(), name)
    except RecordError as error:
        return Link("lost", str(error))


def reason(error: Exception) -> str:
    """What an error of httpx means to a user, one line."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return "the server wants an API key: give --api-key or set ASTRAEA_API_KEY"
        if status == httpx.codes.NOT_FOUND:
            return "this is not an astraea-local server"
        return message_of(error.response)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "no server answers"
    if isinstance(error, httpx.ReadTimeout):
        return f"the server said nothing for {_SILENCE_S:.0f} s"
    return f"the connection broke ({type(error).__name__})"


def message_of(response: httpx.Response) -> str:
    """What an error body says, else the status."""
    try:
        return str(json.loads(response.content)["error"]["message"])
    except (ValueError, KeyError, TypeError, httpx.ResponseNotRead):
        return f"the server answered with HTTP {response.status_code}"
