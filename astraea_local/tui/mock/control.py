"""The made-up world as the UI meets it: a source of frames, and its other side."""

import asyncio
from collections.abc import AsyncIterator

from astraea_local.job_detail import JobDetail
from astraea_local.past_jobs import Page, Query
from astraea_local.tui.actions import Action, ActionError
from astraea_local.tui.mock.agent import Agent
from astraea_local.tui.mock.world import STEP_S, MockWorld
from astraea_local.tui.pace import INTERVAL_S
from astraea_local.tui.source import Link, Transport, Update


class MockSource:
    """Frames of a mock world, in real time."""

    name = "mock"
    interval = INTERVAL_S
    transport: Transport | None = None

    def __init__(self, world: MockWorld) -> None:
        self.world = world

    async def updates(self) -> AsyncIterator[Update]:
        """A frame after each interval, the first at once."""
        yield Link("live", "mock")
        while True:
            yield self.world.frame()
            await asyncio.sleep(self.interval)
            for _ in range(max(1, round(self.interval / STEP_S))):
                self.world.step()


class MockControl:
    """Does, roughly, what a server would."""

    def __init__(self, world: MockWorld, *, readonly: bool = False) -> None:
        self.refusal = "read-only: started with --readonly" if readonly else ""
        self._world = world

    async def act(self, action: Action) -> str:
        """Does it to the mock world. Raises `ActionError`."""
        if self.refusal:
            raise ActionError(self.refusal)
        done = self._act_on(self._known(action.job), action) if action.job else self._act(action)
        self._world.log("info", f"on request: {action.text}: {done}")
        return done

    async def detail(self, job: str) -> JobDetail:
        """The life of a mock job. Raises `ActionError`."""
        world = self._world
        children = [other.name for other in world.jobs.values() if other.parent == job]
        return self._known(job).detail(world.now, children)

    async def history(self, query: Query) -> Page:
        """The mock jobs that ended."""
        found = [job for job in self._world.finished if query.job in job.job]
        found.sort(key=lambda job: getattr(job, query.sort), reverse=query.order == "desc")
        jobs = found[query.offset : query.offset + query.limit]
        return Page(total=len(found), limit=query.limit, offset=query.offset, jobs=jobs)

    async def policies(self) -> list[tuple[str, str]]:
        """Two of them."""
        return [("astraea", "least remaining work first"), ("fcfs", "first come, first served")]

    def _known(self, name: str) -> Agent:
        if name not in self._world.jobs:
            raise ActionError(f"there is no job {name!r}")
        return self._world.jobs[name]

    def _act_on(self, job: Agent, action: Action) -> str:
        match action.verb:
            case "pin" | "unpin":
                job.pinned = action.verb == "pin"
                return "its KV stays in its slot" if job.pinned else "its KV may be moved"
            case "park" | "drop":
                if job.state != "waiting" or job.kv != "slot":
                    raise ActionError(
                        f"{job.name} is {job.state} with its KV in {job.kv}: nothing to {action.verb}"
                    )
                self._world.move(job, "ram" if action.verb == "park" else "none")
                return f"{job.tokens:,} tokens {'to RAM' if action.verb == 'park' else 'dropped'}"
            case "cancel":
                self._world.finish(job, "cancelled")
                return "cancelled"
            case _:
                job.priority = int(action.body["priority"])
                return f"priority {job.priority:+d}"

    def _act(self, action: Action) -> str:
        world = self._world
        match action.verb:
            case "pause scheduling" | "resume scheduling":
                world.paused = action.verb == "pause scheduling"
            case "pause server" | "resume server":
                world.stopped = action.verb == "pause server"
            case "policy":
                world.policy = str(action.body["policy"])
            case _:
                world.context, world.slots = int(action.body["size"]), int(action.body["slots"])
                for job in world.jobs.values():
                    if job.slot is not None and job.slot >= world.slots:
                        job.slot = None
        return "done"
