"""The mock world is lively, repeatable and consistent."""

import pytest

from astraea_local.past_jobs import Query
from astraea_local.tui.actions import Action, ActionError
from astraea_local.tui.mock import MockControl, MockWorld
from tests.tui.driving import START, world


def test_the_same_seed_gives_the_same() -> None:
    assert world(20).frame() == world(20).frame()
    assert world(20).frame() != world(20, seed=8).frame()


def test_there_is_something_of_everything_to_see() -> None:
    made = MockWorld(1, agents=24, start=START)
    states: set[str] = set()
    tiers: set[str] = set()
    for _ in range(1200):
        made.step()
        frame = made.frame()
        states |= {job.state for job in frame.jobs}
        tiers |= {job.kv for job in frame.jobs}
        running = [slot for slot in frame.slots if slot.segment is not None]
        assert len({slot.job for slot in running}) == len(running) <= frame.server.slots
        assert {row.job for row in frame.queue} == {job.job for job in frame.jobs if job.state == "queued"}
        assert 0 <= frame.kv.cells_used <= frame.kv.cells_total
    assert states == {"queued", "prefill", "decode", "waiting"}
    assert tiers == {"none", "slot", "ram", "disk"}
    assert frame.completion.finished > 10


async def test_actions_change_the_world() -> None:
    made = world(24)
    control = MockControl(made)
    while not any(j.state == "waiting" and j.kv == "slot" for j in made.jobs.values()):
        made.step()
    waiting = next(j.name for j in made.jobs.values() if j.state == "waiting" and j.kv == "slot")
    await control.act(Action("pin", waiting))
    assert next(row for row in made.frame().jobs if row.job == waiting).pinned
    await control.act(Action("park", waiting))
    assert next(row for row in made.frame().jobs if row.job == waiting).kv == "ram"
    with pytest.raises(ActionError):
        await control.act(Action("park", waiting))
    await control.act(Action("cancel", waiting))
    assert waiting not in {row.job for row in made.frame().jobs}
    assert (await control.history(Query(job=waiting))).jobs[0].outcome == "cancelled"
    with pytest.raises(ActionError, match="there is no job"):
        await control.detail(waiting)


async def test_a_paused_scheduler_admits_nobody() -> None:
    made = world(24)
    await MockControl(made).act(Action("pause scheduling"))
    running = {slot.job for slot in made.frame().slots if slot.segment is not None}
    for _ in range(200):
        made.step()
    assert {slot.job for slot in made.frame().slots if slot.segment is not None} <= running
    assert made.frame().scheduling_paused


async def test_readonly_changes_nothing() -> None:
    made = world()
    with pytest.raises(ActionError, match="--readonly"):
        await MockControl(made, readonly=True).act(Action("cancel", next(iter(made.jobs))))
