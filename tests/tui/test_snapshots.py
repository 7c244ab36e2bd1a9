"""What every screen looks like; `pytest --snapshot-update` takes new pictures after a wanted change."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from astraea_local.frame import PressureLevel, StateFrame
from astraea_local.tui.mock import MockControl, MockWorld
from astraea_local.tui.source import Link, Update
from tests.tui.driving import START, Given, app, frames, until, world

SIZES = [(80, 24), (120, 40), (200, 60)]
SnapCompare = Callable[..., bool]


def shown(press: str = "", sign: str = "") -> Callable[[Pilot[str]], Awaitable[None]]:
    """Waits until the frames were taken, presses keys, and waits for what they asked the server."""

    async def before(pilot: Pilot[str]) -> None:
        source: Any = pilot.app._source  # type: ignore[attr-defined]
        assert isinstance(source, Given)
        await until(pilot, source.given.is_set)
        await pilot.pause()
        if press:
            await pilot.press(*press.split())
        for _ in range(5):
            await pilot.pause()

    return before


def busy_world() -> tuple[list[StateFrame], MockControl]:
    made = world(24, steps=420)
    return frames(made, 40), MockControl(made)


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


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    ("screen", "press"),
    [
        ("overview", ""),
        ("job", "down down enter"),
        ("history", "h"),
        ("kv_map", "v"),
        ("help", "question_mark"),
        ("confirm", "d"),
    ],
    ids=lambda value: value if value.isidentifier() and len(value) > 2 else "",
)
def test_screen(snap_compare: SnapCompare, size: tuple[int, int], screen: str, press: str) -> None:
    updates, control = busy_world()
    assert snap_compare(app(updates, control), terminal_size=size, run_before=shown(press)), screen


STATES: dict[str, Callable[[], list[Update]]] = {
    "empty": lambda: [
        MockWorld(7, agents=0, start=START).frame().model_copy(update={"jobs": [], "queue": []})
    ],
    "busy": lambda: [*frames(world(500, steps=200), 8)],
    "pressure": lambda: [under_pressure(f) for f in frames(world(24), 4)],
    "disconnected": lambda: [*frames(world(), 4), Link("lost", "no server answers; trying again")],
    "loading": lambda: [Link("loading", "loading the model, 43%")],
    "paused": lambda: [
        f.model_copy(update={"status": "paused", "scheduling_paused": True}) for f in frames(world(), 2)
    ],
}


@pytest.mark.parametrize("state", STATES)
def test_state(snap_compare: SnapCompare, state: str) -> None:
    assert snap_compare(app(STATES[state]()), terminal_size=(120, 40), run_before=shown())


def test_too_small(snap_compare: SnapCompare) -> None:
    assert snap_compare(app(frames(world(), 2)), terminal_size=(50, 12), run_before=shown())


def test_policies(snap_compare: SnapCompare) -> None:
    assert snap_compare(app(frames(world(), 2)), terminal_size=(80, 24), run_before=shown("o"))
