"""The UI on a real server with SmolLM2: every action does to it what the screen says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from astraea_local.frame import JobRow, StateFrame
from astraea_local.tui.actions import HttpControl
from astraea_local.tui.app import AstraeaApp
from astraea_local.tui.connection import open_client
from astraea_local.tui.panels.table import Table
from astraea_local.tui.screens.confirm import Pick, Resize
from astraea_local.tui.screens.history import History
from astraea_local.tui.screens.job import JobScreen
from astraea_local.tui.source import HttpSource
from tests.conftest import Server, StartServer
from tests.tui.driving import text, until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def own_server(start_server: StartServer) -> Server:
    """A server that these tests may change."""
    return start_server("--ctx", "2048", "--slots", "2")


@asynccontextmanager
async def watching(server: Server, *, readonly: bool = False) -> AsyncIterator[Pilot[str]]:
    async with open_client(server.url, None) as client:
        ui = AstraeaApp(HttpSource(server.url, client), HttpControl(client, readonly=readonly))
        async with ui.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: ui.view.frame is not None)
            yield pilot


def frame(pilot: Pilot[str]) -> StateFrame:
    assert isinstance(pilot.app, AstraeaApp)
    assert pilot.app.view.frame is not None
    return pilot.app.view.frame


def row(pilot: Pilot[str], job: str) -> JobRow:
    return next(row for row in frame(pilot).jobs if row.job == job)


async def ask(server: Server, job: str, *, tokens: int = 4) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        messages = [{"role": "user", "content": "Name the planets. " * 12}]
        body = {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        headers = {"X-Astraea-Job": job}
        return await client.post("/v1/chat/completions", json=body, headers=headers)


async def select(pilot: Pilot[str], job: str) -> None:
    table = pilot.app.screen.query_one("#agents", Table)
    await until(pilot, lambda: any(r.job == job for r in table.rows))
    table.focus()
    table.move_to(next(i for i, r in enumerate(table.rows) if r.job == job))


def said(pilot: Pilot[str], words: str) -> bool:
    assert isinstance(pilot.app, AstraeaApp)
    return any(words in event.text for event in pilot.app.view.trail.log)


async def test_pin_park_and_drop(own_server: Server) -> None:
    await ask(own_server, "kept")
    async with watching(own_server) as pilot:
        await select(pilot, "kept")
        await until(pilot, lambda: row(pilot, "kept").kv == "slot")
        await pilot.press("i")
        await until(pilot, lambda: row(pilot, "kept").pinned)
        await until(pilot, lambda: said(pilot, "kept: its KV stays in its slot, on request"))
        await pilot.press("i")
        await until(pilot, lambda: not row(pilot, "kept").pinned)
        await until(pilot, lambda: said(pilot, "kept: its KV may be moved again, on request"))
        await pilot.press("k")
        await until(pilot, lambda: said(pilot, "kept: parked "))
        await pilot.press("k")
        await until(pilot, lambda: said(pilot, "not done: park kept: it has no KV in a slot"))
        await pilot.press("d", "n")
        await pilot.press("d", "y")
        await until(pilot, lambda: row(pilot, "kept").kv == "none")
        await until(pilot, lambda: said(pilot, "kept: dropped "))


async def test_priority(own_server: Server) -> None:
    await ask(own_server, "chief")
    async with watching(own_server) as pilot:
        await select(pilot, "chief")
        await pilot.press("greater_than_sign")
        await until(pilot, lambda: row(pilot, "chief").priority == 1)
        await until(pilot, lambda: said(pilot, "chief: priority set to 1, on request"))
        await pilot.press("less_than_sign")
        await until(pilot, lambda: row(pilot, "chief").priority == 0)


async def test_cancel_ends_the_request(own_server: Server) -> None:
    async with watching(own_server) as pilot:
        request = asyncio.create_task(ask(own_server, "endless", tokens=1500))
        await select(pilot, "endless")
        await until(pilot, lambda: row(pilot, "endless").state == "decode")
        await pilot.press("c", "y")
        answer = await asyncio.wait_for(request, 20)
        assert answer.status_code >= 400
        await until(pilot, lambda: said(pilot, "endless: cancelled 1 request, on request"))


async def test_a_paused_scheduler_admits_nothing(own_server: Server) -> None:
    async with watching(own_server) as pilot:
        await pilot.press("x", "y")
        await until(pilot, lambda: frame(pilot).scheduling_paused)
        assert "scheduling paused" in text(pilot)
        request = asyncio.create_task(ask(own_server, "patient"))
        await until(pilot, lambda: any(r.job == "patient" and r.state == "queued" for r in frame(pilot).jobs))
        await pilot.press("x")
        assert (await asyncio.wait_for(request, 30)).status_code == 200
        await until(pilot, lambda: not frame(pilot).scheduling_paused)
        await until(pilot, lambda: said(pilot, "scheduling resumed: 1 requests waited, on request"))
        assert said(pilot, "scheduling paused: nothing new is admitted, on request")


async def test_the_policy_is_picked_from_a_list(own_server: Server) -> None:
    async with watching(own_server) as pilot:
        await pilot.press("o")
        await until(pilot, lambda: isinstance(pilot.app.screen, Pick))
        assert "first come, first served" in text(pilot)
        await pilot.press("home", "down", "down", "enter")
        await until(pilot, lambda: frame(pilot).server.policy == "fcfs")
        await until(pilot, lambda: said(pilot, "scheduling by fcfs: "))


async def test_the_context_is_resized(own_server: Server) -> None:
    async with watching(own_server) as pilot:
        await pilot.press("z")
        await until(pilot, lambda: isinstance(pilot.app.screen, Resize))
        pilot.app.screen.query_one("#size", Input).value = "3072"
        pilot.app.screen.query_one("#slots", Input).value = "3"
        await pilot.press("enter")
        await pilot.press("y")
        await until(pilot, lambda: (frame(pilot).server.context, frame(pilot).server.slots) == (3072, 3))
        await until(pilot, lambda: said(pilot, "the context has 3,072 cells and 3 slots now"))


async def test_the_server_gives_its_memory_back_and_goes_on(own_server: Server) -> None:
    async with watching(own_server) as pilot:
        await pilot.press("g", "y")
        await until(pilot, lambda: frame(pilot).status == "paused")
        await pilot.press("g")
        await until(pilot, lambda: frame(pilot).status == "ready")
        await until(pilot, lambda: said(pilot, "resumed"))
        assert said(pilot, "paused: the model is unloaded, its memory is free")
    assert (await ask(own_server, "after")).status_code == 200


async def test_readonly_changes_nothing(own_server: Server) -> None:
    await ask(own_server, "safe")
    async with watching(own_server, readonly=True) as pilot:
        await select(pilot, "safe")
        before = own_server.state()["server"]
        for keys in (("i",), ("k",), ("d",), ("c",), ("greater_than_sign",), ("x",), ("g",)):
            await pilot.press(*keys)
        await until(pilot, lambda: said(pilot, "pause server: read-only"))
        assert own_server.state()["server"] == before
        assert row(pilot, "safe").kv == "slot"
        assert not row(pilot, "safe").pinned


async def test_the_life_of_a_job(own_server: Server) -> None:
    await ask(own_server, "lively")
    await ask(own_server, "lively")
    async with watching(own_server) as pilot:
        await select(pilot, "lively")
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, JobScreen)
        calls = pilot.app.screen.query_one("#calls", Table)
        await until(pilot, lambda: len(calls.rows) == 2)
        assert calls.rows[1].cached_tokens > 0
        assert "prefill" in text(pilot)


async def test_the_history_is_shown_and_exported(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await ask(own_server, "bygone")
    async with watching(own_server) as pilot:
        await pilot.press("h")
        assert isinstance(pilot.app.screen, History)
        await pilot.press("slash", *"bygone", "enter")
        table = pilot.app.screen.query_one("#finished", Table)
        await until(pilot, lambda: [job.job for job in table.rows] == ["bygone"])
        await pilot.press("e")
        await until(pilot, lambda: len(list(tmp_path.glob("*.csv"))) == 1)
    (file,) = tmp_path.glob("*.csv")  # noqa: ASYNC240
    assert "bygone" in file.read_text()


async def test_a_server_that_is_killed_and_comes_back(start_server: StartServer) -> None:
    server = start_server()
    port = server.url.rpartition(":")[2]
    async with watching(server) as pilot:
        assert isinstance(pilot.app, AstraeaApp)
        view = pilot.app.view
        await asyncio.to_thread(server.stop)
        await until(pilot, lambda: view.link.state == "lost")
        assert "no server answers" in view.link.text or "ended" in view.link.text
        await pilot.press("v", "escape")
        await asyncio.to_thread(start_server, "--port", port, healthy=False)
        await until(pilot, lambda: view.link.state == "live", 60)
