"""Sources: reconnecting, skipping, refusing, and playing a recording in its own time."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from astraea_local.frame import StateFrame
from astraea_local.tui.connection import reason
from astraea_local.tui.record import Recorder, RecordError, Recording
from astraea_local.tui.source import HttpSource, Link, ReplaySource, Transport, Update, newest
from tests.tui.driving import frames, world

FRAMES = frames(world(), 6)


class Stream(httpx.AsyncByteStream):
    """Server-sent events, then the end of the connection or silence."""

    def __init__(self, *taken: StateFrame | bytes, silent: bool = False, pause_s: float = 0.0) -> None:
        self._taken = [t if isinstance(t, bytes) else t.model_dump_json().encode() for t in taken]
        self._silent = silent
        self._pause_s = pause_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b": hello\n\n"
        for data in self._taken:
            yield b"event: frame\ndata: " + data + b"\n\n"
            await asyncio.sleep(self._pause_s)
        if self._silent:
            await asyncio.Event().wait()


class Server:
    """Gives one answer after another to those who ask for events; refuses connections when there is none."""

    def __init__(self, *answers: httpx.Response | int, health: list[dict[str, object]] | None = None) -> None:
        self.answers = list(answers)
        self.health = health or []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":
            body = self.health.pop(0) if self.health else {"status": "ok"}
            return httpx.Response(200 if body["status"] == "ok" else 503, json=body)
        answer = self.answers.pop(0) if self.answers else 0
        if isinstance(answer, httpx.Response):
            return answer
        if answer:
            return httpx.Response(answer, json={"error": {"message": "refused"}})
        raise httpx.ConnectError("refused", request=request)


def source(server: Server, *, interval: float = 0.0) -> HttpSource:
    client = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(server))
    return HttpSource("http://server", client, interval=interval)


def stream(*taken: StateFrame, silent: bool = False) -> httpx.Response:
    return httpx.Response(200, stream=Stream(*taken, silent=silent))


async def collect(updates: AsyncIterator[Update], last: Update | str, seconds: float = 20.0) -> list[Update]:
    """All updates up to one that is `last`, or a link whose text contains it."""
    seen: list[Update] = []
    async with asyncio.timeout(seconds):
        async for update in updates:
            seen.append(update)
            if update == last or (isinstance(update, Link) and isinstance(last, str) and last in update.text):
                break
    return seen


async def test_a_broken_connection_is_told_and_made_again() -> None:
    seen = await collect(
        source(Server(stream(FRAMES[0]), stream(FRAMES[1], silent=True))).updates(), FRAMES[1]
    )
    assert [u.state for u in seen if isinstance(u, Link)][-2:] == ["lost", "live"]
    assert [u for u in seen if isinstance(u, StateFrame)] == FRAMES[:2]


async def test_frames_that_come_faster_than_they_are_wanted_are_skipped() -> None:
    seen = await collect(source(Server(stream(*FRAMES, silent=True)), interval=0.05).updates(), FRAMES[-1])
    taken = [u for u in seen if isinstance(u, StateFrame)]
    assert len(taken) < len(FRAMES)
    assert taken[-1] == FRAMES[-1]


async def test_all_frames_are_recorded_also_those_that_are_skipped() -> None:
    raw: list[bytes] = []
    server = Server(stream(*FRAMES, silent=True))
    client = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(server))
    await collect(HttpSource("x", client, interval=0.05, on_raw=raw.append).updates(), FRAMES[-1])
    assert [StateFrame.model_validate_json(data) for data in raw] == FRAMES


async def test_a_recording_that_ends_is_told_and_the_frames_go_on() -> None:
    def full(_data: bytes) -> None:
        raise RecordError("r.jsonl: recording ended: no space left")

    server = Server(stream(*FRAMES, silent=True))
    client = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(server))
    seen = await collect(HttpSource("x", client, interval=0.0, on_raw=full).updates(), FRAMES[-1])
    assert Link("live", "r.jsonl: recording ended: no space left") in seen


@pytest.mark.parametrize("name", ["Ã\x85lesund", "a\u2028b", "a\x1eb"])
async def test_names_with_characters_that_end_lines_elsewhere(name: str) -> None:
    job = FRAMES[0].jobs[0].model_copy(update={"job": name})
    frame = FRAMES[0].model_copy(update={"jobs": [job]})
    seen = await collect(source(Server(stream(frame, silent=True))).updates(), frame)
    assert seen[-1] == frame


async def test_a_loading_model_is_shown_with_its_progress() -> None:
    server = Server(stream(FRAMES[0], silent=True), health=[{"status": "loading", "progress": 0.43}])
    seen = await collect(source(server).updates(), FRAMES[0])
    assert Link("loading", "loading the model, 43%") in seen


async def test_a_loading_server_of_another_kind_is_waited_for_too() -> None:
    server = Server(stream(FRAMES[0], silent=True), health=[{"status": "loading", "progress": "some"}])
    seen = await collect(source(server).updates(), FRAMES[0])
    assert Link("loading", "loading the model") in seen


async def test_a_frame_that_cannot_be_read_is_told_until_the_next_one() -> None:
    answer = httpx.Response(200, stream=Stream(FRAMES[0], b"{}", FRAMES[1], silent=True, pause_s=0.02))
    seen = await collect(source(Server(answer)).updates(), FRAMES[1])
    links = [update for update in seen if isinstance(update, Link)]
    assert [link.state for link in links] == ["connecting", "live", "lost", "live"]
    assert "not a StateFrame" in links[2].text


async def test_a_server_that_is_starting_is_waited_for() -> None:
    class Late(Server):
        tries = 0

        async def __call__(self, request: httpx.Request) -> httpx.Response:
            self.tries += 1
            if self.tries < 3:
                raise httpx.ConnectError("refused", request=request)
            return await super().__call__(request)

    transport = httpx.MockTransport(Late(stream(FRAMES[0], silent=True)))
    client = httpx.AsyncClient(base_url="http://server", transport=transport)
    seen = await collect(HttpSource("x", client, starting=True).updates(), FRAMES[0])
    assert seen[0] == Link("connecting", "the server is starting")
    assert not any(isinstance(u, Link) and u.state == "lost" for u in seen)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "API key"), (404, "not an astraea-local server"), (500, "refused"), (0, "no server")],
)
async def test_what_is_wrong_is_said(status: int, words: str) -> None:
    seen = await collect(source(Server(status)).updates(), words)
    assert isinstance(seen[-1], Link)
    assert seen[-1].state == "lost"


async def test_one_frame_or_the_reason_why_not() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=FRAMES[0].model_dump_json())

    client = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(answer))
    assert await newest(client) == FRAMES[0]
    assert reason(httpx.ReadTimeout("x")).startswith("the server said nothing")


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    with Recorder(tmp_path / "r.jsonl") as recorder:
        for frame in FRAMES:
            recorder.write(frame.model_dump_json().encode())
    return Recording(tmp_path / "r.jsonl")


async def test_a_recording_plays_to_its_end_and_again(recording: Recording) -> None:
    with recording:
        playing = ReplaySource(recording)
        assert playing.transport is not None
        playing.transport.speed = 16.0
        updates = playing.updates()
        seen = await collect(updates, "‖ recording 6/6")
        assert [u for u in seen if isinstance(u, StateFrame)] == FRAMES
        playing.transport.toggle()
        again = await collect(updates, FRAMES[1])
        assert FRAMES[0] in again
        await updates.aclose()  # type: ignore[attr-defined]


async def test_a_recording_is_stepped_both_ways(recording: Recording) -> None:
    with recording:
        playing = ReplaySource(recording)
        assert playing.transport is not None
        playing.transport.step(3)
        updates = playing.updates()
        assert FRAMES[3] in await collect(updates, FRAMES[3])
        playing.transport.step(-1)
        assert FRAMES[2] in await collect(updates, FRAMES[2])
        await updates.aclose()  # type: ignore[attr-defined]


async def test_a_broken_line_is_told_and_does_not_end_the_play(tmp_path: Path) -> None:
    lines = [frame.model_dump_json() for frame in FRAMES[:3]]
    lines[1] = '{"frame_version": 99}'
    (tmp_path / "r.jsonl").write_text("\n".join(lines) + "\n")
    with Recording(tmp_path / "r.jsonl") as recording:
        seen = await collect(ReplaySource(recording).updates(), FRAMES[2])
    assert any(isinstance(u, Link) and "frame version 99" in u.text for u in seen)


def test_steps_and_speeds_stay_in_their_bounds() -> None:
    transport = Transport(10)
    transport.step(-5)
    assert transport.position == 0
    transport.step(50)
    assert transport.position == 9
    for _ in range(20):
        transport.faster(1)
    assert transport.speed == 16.0
    for _ in range(20):
        transport.faster(-1)
    assert transport.speed == 0.25
