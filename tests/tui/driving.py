"""Worlds, sources and apps for tests of the UI: seeded, and with a clock that stands still."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from textual.pilot import Pilot

from astraea_local.frame import StateFrame
from astraea_local.tui.actions import Control
from astraea_local.tui.app import AstraeaApp, Host
from astraea_local.tui.keys import KeysFile
from astraea_local.tui.mock import MockControl, MockWorld
from astraea_local.tui.source import Link, Transport, Update

START = 1_800_000_000.0


def world(agents: int = 12, *, steps: int = 160, seed: int = 7) -> MockWorld:
    """A mock world some time after its beginning."""
    made = MockWorld(seed, agents=agents, start=START)
    for _ in range(steps):
        made.step()
    return made


def frames(made: MockWorld, number: int) -> list[StateFrame]:
    """So many frames of it, a step apart."""
    taken = []
    for _ in range(number):
        made.step()
        taken.append(made.frame())
    return taken


class Given:
    """A source that gives what it was given, then nothing more."""

    name = "given"
    interval = 0.25

    def __init__(self, updates: Sequence[Update], transport: Transport | None = None) -> None:
        self.transport = transport
        self.given = asyncio.Event()
        self._updates = updates

    async def updates(self) -> AsyncIterator[Update]:
        yield Link("live")
        for update in self._updates:
            yield update
        self.given.set()
        await asyncio.Event().wait()


def app(
    updates: Sequence[Update],
    control: Control | None = None,
    *,
    keys: KeysFile | None = None,
    host: Host | None = None,
) -> AstraeaApp:
    """An app that shows those updates, at a time just after the last of them."""
    last = max((u.at for u in updates if isinstance(u, StateFrame)), default=START)
    return AstraeaApp(
        Given(updates),
        control or MockControl(MockWorld(7, start=START)),
        keys=keys,
        keys_path=Path("~/.config/astraea-local/keys.toml"),
        host=host,
        clock=lambda: last,
    )


class Hosted:
    """A server that was started with the UI, and says nothing."""

    def lines(self) -> list[str]:
        return []

    def ended(self) -> str | None:
        return None


async def until(pilot: Pilot[str], is_true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Lets the app run until something is true; fails with what is on the screen."""
    for _ in range(int(seconds / 0.05)):
        await pilot.pause()
        if is_true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds} s; on the screen:\n{text(pilot)}")


def text(pilot: Pilot[str]) -> str:
    """All that is on the screen."""
    screen = pilot.app.screen
    update = screen._compositor.render_strips()
    return "\n".join(strip.text for strip in update)
