"""What every screen looks like; `pytest --snapshot-update` takes new pictures after a wanted change."""

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import httpx
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from astraea_local.frame import PressureLevel, StateFrame
from astraea_local.tui.actions import Control, HttpControl
from astraea_local.tui.app import AstraeaApp
from astraea_local.tui.mock import MockControl, MockWorld
from astraea_local.tui.source import Link, Update
from tests.tui.driving import START, Given, Hosted, app, frames, until, world

SIZES = [(80, 24), (120, 40), (200, 60)]
SnapCompare = Callable[..., bool]


def shown(press: str = "", job: str = "") -> Callable[[Pilot[str]], Awaitable[None]]:
    """Waits until the frames were taken, opens a job or presses keys, and waits for what the server says."""

    async def before(pilot: Pilot[str]) -> None:
        source: Any = pilot.app._source  # type: ignore[attr-defined]
        assert isinstance(source, Given)
        await until(pilot, source.given.is_set)
        await pilot.pause()
        if job:
            assert isinstance(pilot.app, AstraeaApp)
            pilot.app.open_job(job)
        if press:
            await pilot.press(*press.split())
        for _ in range(5):
            await pilot.pause()
        for field in pilot.app.screen.query(Input):
            field.cursor_blink = False
        await pilot.pause()

    return before


Shown = tuple[list[Update], Control]


@cache
def lively() -> Shown:
    """Two dozen agents, some of which have ended."""
    made = world(24, steps=420)
    return list(frames(made, 40)), MockControl(made)


@cache
def empty() -> Shown:
    """A server that nobody has asked for anything."""
    made = MockWorld(7, agents=0, start=START)
    return [made.frame().model_copy(update={"jobs": [], "queue": []})], MockControl(made)


@cache
def busy() -> Shown:
    """500 agents."""
    made = world(500, steps=200)
    return list(frames(made, 8)), MockControl(made)


@cache
def pressed() -> Shown:
    """Every memory nearly full."""
    updates, control = lively()
    return [under_pressure(update) for update in updates if isinstance(update, StateFrame)], control


@cache
def disconnected() -> Shown:
    """A server that answered, and no longer does."""

    def refused(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    client = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(refused))
    return [*lively()[0], Link("lost", "no server answers; trying again")], HttpControl(client)


def under_pressure(frame: StateFrame) -> StateFrame:
    """The same with every memory nearly full."""
    levels: dict[str, PressureLevel] = {
        "cells": "critical",
        "vram": "critical",
        "ram": "high",
        "disk": "high",
    }
    total = frame.memory.vram_total or 1
    memory = frame.memory.model_copy(
        update={
            "pressure": levels,
            "vram_free": total // 50,
            "vram_others": total // 2,
            "vram_ours": total // 2 - total // 50,
            "ram_available": frame.memory.ram_total // 12,
            "disk_free": 1 << 30,
            "simulated": True,
        }
    )
    kv = frame.kv.model_copy(
        update={"cells_used": frame.kv.cells_total, "parks": 900, "ram_bytes": frame.kv.ram_budget_bytes}
    )
    return frame.model_copy(update={"memory": memory, "kv": kv, "restarts": 2})


SCREENS = {"overview": "", "job": "", "history": "h", "kv_map": "v", "help": "question_mark"}
STATES: dict[str, Callable[[], Shown]] = {
    "lively": lively,
    "empty": empty,
    "busy": busy,
    "pressure": pressed,
    "disconnected": disconnected,
}


def a_job(updates: list[Update]) -> str:
    """The one with the most calls; on a server without jobs, one that has been there."""
    last = next(update for update in reversed(updates) if isinstance(update, StateFrame))
    return max(last.jobs, key=lambda job: job.segments).job if last.jobs else "coder-1"


PICTURES = [(state, screen) for state in STATES for screen in SCREENS if screen != "help"]
# It is the same whatever the server does.
PICTURES.append(("lively", "help"))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(("state", "screen"), PICTURES)
def test_screen(snap_compare: SnapCompare, state: str, screen: str, size: tuple[int, int]) -> None:
    updates, control = STATES[state]()
    before = shown(SCREENS[screen], a_job(updates) if screen == "job" else "")
    assert snap_compare(app(updates, control), terminal_size=size, run_before=before)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("dialog", ["filter", "drop", "policy", "resize", "quit"])
def test_dialog(snap_compare: SnapCompare, dialog: str, size: tuple[int, int]) -> None:
    updates, control = lively()
    keys = {"filter": "slash w a i", "drop": "d", "policy": "o", "resize": "z", "quit": "q"}
    assert snap_compare(
        app(updates, control, host=Hosted()), terminal_size=size, run_before=shown(keys[dialog])
    )


def test_loading(snap_compare: SnapCompare) -> None:
    loading = app([Link("loading", "loading the model, 43%")])
    assert snap_compare(loading, terminal_size=(120, 40), run_before=shown())


def test_paused(snap_compare: SnapCompare) -> None:
    changes = {"status": "paused", "scheduling_paused": True}
    paused = app([frame.model_copy(update=changes) for frame in frames(world(), 2)])
    assert snap_compare(paused, terminal_size=(120, 40), run_before=shown())


def test_too_small(snap_compare: SnapCompare) -> None:
    assert snap_compare(app(frames(world(), 2)), terminal_size=(50, 12), run_before=shown())
